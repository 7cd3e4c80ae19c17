"""The handler that the slim archive is measured against, as the usual article has it: one request at a time.

The model folder is downloaded from the bucket file by file when the worker starts, and loaded with transformers; a batch of
requests is not looked for, the first is answered by one call of `generate`. Nothing in it is slow on purpose. What it must know
(endpoint, keys, folder of the bucket, dtype) is in its archive's model-config.yaml.
"""

import json
from pathlib import Path
from typing import Any

import minio
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from ts.torch_handler.base_handler import BaseHandler


class OriginalHandler(BaseHandler):  # type: ignore[misc]
    """One worker with one model."""

    model: Any
    tokenizer: Any

    def initialize(self, context: Any) -> None:
        config = context.model_yaml_config["original"]
        folder = Path(context.system_properties["model_dir"]) / "model"
        keys = Path(config["credentials_dir"])
        client = minio.Minio(
            config["endpoint"],
            (keys / "access_key").read_text().strip(),
            (keys / "secret_key").read_text().strip(),
            secure=False,
        )
        prefix = f"{config['model']}/"
        for entry in client.list_objects(config["bucket"], prefix=prefix, recursive=True):
            target = folder / str(entry.object_name).removeprefix(prefix)
            client.fget_object(config["bucket"], str(entry.object_name), str(target))
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, config["dtype"])).eval()
        self.initialized = True

    def preprocess(self, data: list[dict[str, Any]]) -> dict[str, Any]:
        body: Any = data[0].get("body") or data[0].get("data")
        request: dict[str, Any] = body if isinstance(body, dict) else json.loads(body)
        return request

    def inference(self, request: dict[str, Any]) -> dict[str, Any]:
        encoded = self.tokenizer(request["input"], return_tensors="pt", return_token_type_ids=False)
        with torch.inference_mode():
            tokens = self.model.generate(**encoded, **{"max_length": 200} | request["parameters"])
        return {"tokens": tokens[0], "prompt_tokens": encoded["input_ids"].shape[1]}

    def postprocess(self, found: dict[str, Any]) -> list[str]:
        text = self.tokenizer.decode(found["tokens"], skip_special_tokens=True)
        generated = len(found["tokens"]) - found["prompt_tokens"]
        return [json.dumps([{"generated_text": text, "generated_tokens": generated}])]
