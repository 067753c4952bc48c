"""The converted model behind the same questions as the reference: what verification compares."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cabochon.arrays import Float32Array
from cabochon.backend import LONGEST_RUN, EngineSettings, VisionEncoder
from cabochon.decode import decode, prefill
from cabochon.embedder import PromptEmbeddings, open_embedder
from cabochon.engines import open_session, open_vision_encoder
from cabochon.package import Package
from cabochon.sampling import Sampler, SamplingSettings, soft_cap
from cabochon.tokenizer import Tokenizer
from cabochon_convert.questions import Prompt


class ConvertedModel:
    """A package, opened below the level of text."""

    def __init__(self, package: Package, engine: str) -> None:
        self.manifest = package.manifest
        self._package, self._engine = package, engine
        self._vision_encoder: VisionEncoder | None = None
        self._session = open_session(package, engine, EngineSettings())
        self._embedder = open_embedder(package, engine)
        self.tokenizer = Tokenizer(package.path(package.manifest.tokenizer_file))

    def audio_embeddings(self, frames: Float32Array) -> Float32Array:
        """Frames [frames, values] to embeddings [tokens, hidden]."""
        assert self._session.audio_encoder is not None  # a package without one has no clips to be asked about
        return self._session.audio_encoder.encode(frames)

    def image_embeddings(self, patches: Float32Array) -> Float32Array:
        """Patches [rows, columns, values] to embeddings [tokens, hidden]; the encoder is loaded at the first image."""
        if self._vision_encoder is None:
            self._vision_encoder = open_vision_encoder(self._package, self._engine, EngineSettings())
        return self._vision_encoder.encode(patches)

    def logits(self, prompt: Prompt, keep: int) -> Float32Array:
        """Soft-capped logits of the last positions: [keep, vocabulary]."""
        embedded = self._embed(prompt)
        first_kept = len(embedded) - keep
        parts = []
        for start in range(0, len(embedded), LONGEST_RUN):
            end = min(start + LONGEST_RUN, len(embedded))
            kept = max(1, end - max(start, first_kept))
            inputs = embedded.inputs_embeds[start:end], embedded.per_layer_inputs[start:end]
            raw = self._session.decoder.run(*inputs, start, logits_to_keep=kept)
            if end > first_kept:
                parts.append(raw.copy())
        return soft_cap(np.concatenate(parts), self.manifest.text.final_logit_softcap)

    def greedy(self, prompt: Prompt, count: int, stop_tokens: Sequence[int] = ()) -> list[int]:
        """The likeliest continuation: at most `count` tokens, up to a stop token."""
        decoder, sampling = self._session.decoder, self.manifest.sampling
        sampler = Sampler(SamplingSettings(), sampling.suppress_tokens, self.manifest.text.final_logit_softcap)
        logits = prefill(decoder, self._embed(prompt))
        return list(decode(decoder, self._embedder, sampler, logits, len(prompt.tokens), stop_tokens, count))

    def _embed(self, prompt: Prompt) -> PromptEmbeddings:
        embeddings = None if prompt.frames is None else np.asarray(self.audio_embeddings(prompt.frames))
        return self._embedder.embed(prompt.tokens, self.manifest.audio, embeddings)
