"""A handler for archives with the weights inside, as people write it: the baseline that the slim archive is measured against.

It does what the usual tutorials do (AutoModel and AutoTokenizer on model_dir, one `generate` call a request), nothing clever, and
nothing slow on purpose: the checkpoint's own dtype, a GPU if TorchServe gives one, the prompts of one request in one padded
batch. It takes the same bodies as the slim archive's handler, and its answers have the same form. Everything is in this one
file, which torch-model-archiver packs beside the model folder, without any model-config.yaml. Each answer tells in a header when
its worker began to import, and how long importing and loading took.
"""

import time

BEGAN = time.time()  # before the imports, which are measured

import json  # noqa: E402
import logging  # noqa: E402
import os  # noqa: E402
from datetime import UTC, datetime  # noqa: E402
from typing import Any  # noqa: E402

import torch  # noqa: E402
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer  # noqa: E402
from ts.torch_handler.base_handler import BaseHandler  # noqa: E402

IMPORTED = time.time()
START_HEADER = "X-Weightless-Start"

logger = logging.getLogger(__name__)

DEFAULTS = {"max_length": 200, "top_k": 10, "do_sample": True}


class EmbeddedHandler(BaseHandler):  # type: ignore[misc]
    """One worker of an archive that holds a model folder."""

    model: Any
    tokenizer: Any

    def initialize(self, context: Any) -> None:
        began = time.time()
        properties = context.system_properties
        folder = properties["model_dir"]
        gpu_id = properties.get("gpu_id")
        on_gpu = torch.cuda.is_available() and gpu_id is not None
        self.device = torch.device(f"cuda:{gpu_id}" if on_gpu else "cpu")
        config = AutoConfig.from_pretrained(folder)
        self.generates = any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in config.architectures or [])
        self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left" if self.generates else "right")
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        kind = AutoModelForCausalLM if self.generates else AutoModel
        self.model = kind.from_pretrained(folder, dtype=torch.bfloat16 if on_gpu and self.generates else "auto")
        self.model.to(self.device).eval()
        phases = {"import": round(IMPORTED - BEGAN, 4), "load": round(time.time() - began, 4)}
        self.start = json.dumps(
            {"pid": os.getpid(), "began": datetime.fromtimestamp(BEGAN, UTC).isoformat(), "phases": phases}
        )
        self.initialized = True

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[str]:
        answers = []
        for index, row in enumerate(data):
            context.set_response_header(index, START_HEADER, self.start)
            try:
                body: Any = row.get("body", row.get("data"))
                body = json.loads(body) if isinstance(body, bytes | bytearray | str) else body
                texts = [body["input"]] if isinstance(body["input"], str) else list(body["input"])
                parameters = body.get("parameters") or {}
                details = bool(body.get("details"))
                found = self.generate(texts, parameters, details) if self.generates else self.embed(texts)
                answers.append(json.dumps(found[0] if isinstance(body["input"], str) else found))
            except Exception as error:
                logger.warning("a request failed", exc_info=error)
                context.set_response_status(400, "Bad Request", index)
                answers.append(json.dumps({"error": {"code": 400, "type": "invalid_request", "message": str(error)}}))
        return answers

    @torch.inference_mode()
    def generate(self, texts: list[str], parameters: dict[str, Any], details: bool = False) -> list[Any]:
        """[{"generated_text"}] for each text, with `details` also {"generated_tokens"}: how many, without padding."""
        options = DEFAULTS | parameters
        full = options.pop("return_full_text", True)
        seed, stop = options.pop("seed", None), options.pop("stop", None)
        if options.get("max_new_tokens") is not None:
            options.pop("max_length")
        if seed is not None:
            torch.manual_seed(seed)
        if stop:
            options |= {"stop_strings": stop, "tokenizer": self.tokenizer}
        encoded = self.tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False).to(self.device)
        tokens = self.model.generate(**encoded, pad_token_id=self.tokenizer.pad_token_id, **options)
        new = tokens[:, encoded["input_ids"].shape[1] :]
        answers = self.tokenizer.batch_decode(new, skip_special_tokens=True)
        counts = [
            {"generated_tokens": int(count)} if details else {} for count in (new != self.tokenizer.pad_token_id).sum(1)
        ]
        return [
            [{"generated_text": text + answer if full else answer, **count}]
            for text, answer, count in zip(texts, answers, counts, strict=True)
        ]

    @torch.inference_mode()
    def embed(self, texts: list[str]) -> list[Any]:
        """{"embedding"} for each text: mean over tokens, normalised, as the model cards of sentence-transformers show it."""
        encoded = self.tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=256).to(
            self.device
        )
        hidden = self.model(**encoded).last_hidden_state
        mask = encoded["attention_mask"].unsqueeze(-1)
        mean = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
        return [{"embedding": vector} for vector in torch.nn.functional.normalize(mean, dim=-1).tolist()]
