# One file for the four images of the stack: minio, minio-init, torchserve, locust. They share their stages, so that a build of
# all installs each thing once. Nothing is fetched but from package registries, and all of it pinned: Go modules by
# requirements/go.txt and the checksum database, Python packages by the hashes in requirements/*.txt.
#
# Behind a proxy or with a mirror: name base images that know it (their apt sources, their trusted certificates), and pass
# UV_DEFAULT_INDEX, PIP_INDEX_URL and GOPROXY as build arguments.
ARG DEBIAN_IMAGE=debian:bookworm-slim
ARG GO_IMAGE=golang:1.26-bookworm


# ---- MinIO's server and client: their maintainers publish neither images nor programs any more -------------------------------
FROM ${GO_IMAGE} AS go-build
ARG GOPROXY
ARG GOSUMDB
ENV CGO_ENABLED=0 GOBIN=/out GOFLAGS="-trimpath -ldflags=-s"
COPY requirements/go.txt /go.txt

FROM go-build AS minio-build
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    go install "$(grep /minio/minio@ /go.txt)"

FROM go-build AS mc-build
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    go install "$(grep /minio/mc@ /go.txt)"


# ---- what every image has: a user, the mount points of all volumes, and the health check -----------------------------------
FROM ${DEBIAN_IMAGE} AS base
COPY --chmod=755 images/packages /usr/local/bin/packages
# With HTTPS mirrors, apt needs certificates that this very package brings: such a base image has to bring them itself.
RUN packages ca-certificates tini
# An empty volume takes over the owner of the folder that it is mounted on, whichever container comes first.
RUN useradd --uid 1000 --user-group --no-create-home --home-dir /tmp --shell /usr/sbin/nologin weightless \
    && install -d -o 1000 -g 1000 -m 0700 /secrets/minio /secrets/publisher /secrets/node \
    && install -d -o 1000 -g 1000 /data /downloads /var/cache/weightless /var/lib/weightless /var/lib/baseline
COPY --chmod=755 images/healthy /usr/local/bin/healthy
ENV HOME=/tmp


FROM base AS minio
COPY --from=minio-build /out/minio /usr/local/bin/minio
# No questions to the vendor's servers about newer versions: there are none.
ENV MINIO_UPDATE=off
USER 1000:1000
VOLUME /data
EXPOSE 9000 9001
ENTRYPOINT ["minio"]
# ETags are drawn, not MD5 sums, which cost half of an upload: docs/decisions/0009.
CMD ["server", "--no-compat", "/data", "--console-address", ":9001"]


# ---- Python: the interpreter, and the installer in a stage of its own that no image contains ---------------------------------
FROM base AS python
RUN packages python3
# Bytecode is compiled when an image is built: its root is read-only later.
ENV PATH=/opt/venv/bin:$PATH PYTHONPATH=/app:/app/handler:/app/minio-init PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /app
ENTRYPOINT ["tini", "--", "python"]

FROM python AS installer
ARG PIP_INDEX_URL
RUN packages python3-venv
COPY requirements/uv.txt /uv.txt
RUN python3 -m venv /opt/installer \
    && PIP_CERT=/etc/ssl/certs/ca-certificates.crt /opt/installer/bin/pip install -q --no-cache-dir --require-hashes -r /uv.txt
COPY --chmod=755 images/install /opt/installer/install


# ---- TorchServe with the agent and the zygote -----------------------------------------------------------------------
FROM python AS serving
RUN packages openjdk-17-jre-headless
ARG UV_DEFAULT_INDEX
RUN --mount=type=cache,target=/var/cache/uv --mount=from=installer,source=/opt/installer,target=/opt/installer \
    --mount=type=bind,source=requirements/serving.txt,target=/requirements.txt \
    /opt/installer/install

FROM serving AS torchserve
COPY weightless weightless
COPY serve serve
COPY commands commands
COPY config config
COPY handler handler
RUN python -m compileall -q /app
# The toolkit of an NVIDIA runtime looks at these; without one they mean nothing.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000:1000
VOLUME /var/cache/weightless /var/lib/weightless
EXPOSE 8080
CMD ["-m", "serve.agent"]


# ---- the sample models, made once where torch is ---------------------------------------------------------------------
FROM serving AS samples
ARG UV_DEFAULT_INDEX
RUN --mount=type=cache,target=/var/cache/uv --mount=from=installer,source=/opt/installer,target=/opt/installer \
    --mount=type=bind,source=requirements/samples.txt,target=/requirements.txt \
    /opt/installer/install --add
COPY weightless weightless
COPY minio-init minio-init
RUN python -m seeding samples --out /samples
USER 1000:1000


FROM python AS tools
ARG UV_DEFAULT_INDEX
RUN --mount=type=cache,target=/var/cache/uv --mount=from=installer,source=/opt/installer,target=/opt/installer \
    --mount=type=bind,source=requirements/tools.txt,target=/requirements.txt \
    /opt/installer/install
COPY --from=mc-build /out/mc /usr/local/bin/mc

FROM tools AS minio-init
COPY --from=samples /samples /samples
COPY weightless weightless
COPY minio-init minio-init
COPY commands commands
COPY config config
RUN python -m compileall -q /app
USER 1000:1000
CMD ["-m", "seeding", "init"]


FROM python AS load
ARG UV_DEFAULT_INDEX
RUN --mount=type=cache,target=/var/cache/uv --mount=from=installer,source=/opt/installer,target=/opt/installer \
    --mount=type=bind,source=requirements/loadtest.txt,target=/requirements.txt \
    /opt/installer/install

FROM load AS locust
COPY weightless weightless
COPY loadtest loadtest
RUN python -m compileall -q /app
USER 1000:1000
EXPOSE 8089
# Inside a container the page must listen on its network; docker-compose.yml publishes it on this machine alone.
CMD ["-m", "locust", "-f", "/app/loadtest/locustfile.py", "--web-host", "0.0.0.0"]
