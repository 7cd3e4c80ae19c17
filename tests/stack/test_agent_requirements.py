"""A model with packages of its own: they are installed for it alone, and its workers start the stock way to use them."""

import importlib.util
from pathlib import Path

from tests.agent_process import running_agent
from tests.releases import publish
from tests.services import ROOT, MinioServer


def test_a_models_own_packages_are_there_for_it_alone(minio_server: MinioServer, samples: Path, tmp_path: Path) -> None:
    assert importlib.util.find_spec("shortuuid") is None, "required a package that is not installed here"
    publish(minio_server, "falcon-tiny", samples / "falcon-tiny")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "falcon-tiny.yaml").write_text("node: {requirements: ['shortuuid==1.0.13']}\n")
    with running_agent(tmp_path, minio_server, HANDLER_DIR=str(ROOT / "tests/handlers/needy")) as agent:
        agent.wait_serving("falcon-tiny", "v1")
        answer = agent.predict("falcon-tiny", "where is it?")
        assert answer.status == 200, answer.raw
        found = Path(answer.json[0]["generated_text"])
        assert (found.parents[1] / "model-config.yaml").is_file(), (
            f"required beside the model's own archive, found {found}"
        )
        assert "its own packages" in agent.status()["zygote"]["reason"]
    assert importlib.util.find_spec("shortuuid") is None
