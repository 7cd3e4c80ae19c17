"""`python -m serve.zygote SOCKET IMPORT…`: see the package. The supervisor starts it, with a pipe on standard input."""

import os
import signal
import socket
import sys
from pathlib import Path

import setproctitle

from serve.zygote import compiled, worker
from serve.zygote.fitness import pythonpath
from serve.zygote.zygote import BACKLOG, Zygote


def listen(path: Path) -> socket.socket:
    """A socket for this user alone. Bound before the imports: a launcher that comes early waits until they are done."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    before = os.umask(0o177)
    listener.bind(str(path))
    os.umask(before)
    listener.listen(BACKLOG)
    return listener


def prepare(path: Path) -> Zygote:
    setproctitle.setproctitle("weightless zygote")  # first: it looks for argv next to an environment not yet changed
    environment = dict(os.environb)
    # `-m` put the checkout first. Without it `weightless` and the handler cannot be imported here even by mistake, so that
    # workers find those in their archive.
    checkout = sys.path.pop(0)
    own = pythonpath(os.environ.get("PYTHONPATH", ""), str(Path.cwd()))
    base_path = [entry for entry in sys.path if entry not in own and entry != checkout]
    # OpenBLAS starts its threads when it is loaded; a fork gives them back. With NVML, torch.cuda.is_available() looks for
    # GPUs without initialising CUDA, after which no fork could use it.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    # Ctrl-C in a terminal reaches the whole process group; it is the supervisor that ends us, after the workers.
    on_interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
    return Zygote(listen(path), base_path, environment, on_interrupt)


def main() -> None:
    zygote = prepare(Path(sys.argv[1]))
    code = compiled.empty(Path(f"{sys.argv[1]}.code").absolute())
    zygote.begin(sys.argv[2:])
    start = zygote.serve()
    zygote.close()
    signal.signal(signal.SIGINT, zygote.on_interrupt)
    worker.become(start, zygote.base_path, zygote.set_by_imports)
    compiled.keep_in(code)
    worker.run(start)


if __name__ == "__main__":
    main()
