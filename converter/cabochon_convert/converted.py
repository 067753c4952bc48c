"""The converted model behind the same questions as the reference: what verification compares."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cabochon.arrays import Float32Array
from cabochon.backend import EngineSettings
from cabochon.decode import decode, prefill
from cabochon.embedder import PromptEmbeddings, open_embedder
from cabochon.engines import open_session
from cabochon.package import Package
from cabochon.prompt import Message, PromptWriter, transcription_instruction
from cabochon.sampling import Sampler, SamplingSettings, soft_cap
from cabochon.tokenizer import Tokenizer


class ConvertedModel:
    """A package, opened below the level of text."""

    def __init__(self, package: Package, engine: str) -> None:
        self.manifest = package.manifest
        self._session = open_session(package, engine, EngineSettings())
        self._embedder = open_embedder(package, engine)
        self.tokenizer = Tokenizer(package.path(package.manifest.tokenizer_file))
        self._prompts = PromptWriter(package, self.tokenizer)

    def transcription_prompt(self, audio_tokens: int, language: str) -> list[int]:
        """Tokens of the transcription prompt; for 0 audio tokens, the same words as a plain request."""
        instruction = transcription_instruction(self.manifest.prompts, language)
        return self._prompts.write([Message("user", instruction, has_audio=audio_tokens > 0)], audio_tokens)

    def audio_embeddings(self, log_mel: Float32Array) -> Float32Array:
        """Log-mel [frames, mel_bins] to embeddings [tokens, hidden]."""
        assert self._session.audio_encoder is not None  # a package without one has no clips to be asked about
        return self._session.audio_encoder.encode(log_mel)

    def logits(self, tokens: Sequence[int], log_mel: Float32Array | None) -> Float32Array:
        """Soft-capped logits of every position: [positions, vocabulary]."""
        prompt = self._embed(tokens, log_mel)
        count = len(tokens)
        raw = self._session.decoder.run(prompt.inputs_embeds, prompt.per_layer_inputs, 0, logits_to_keep=count)
        return soft_cap(raw.copy(), self.manifest.text.final_logit_softcap)

    def greedy(
        self, tokens: Sequence[int], log_mel: Float32Array | None, count: int, stop_tokens: Sequence[int] = ()
    ) -> list[int]:
        """The likeliest continuation: at most `count` tokens, up to a stop token."""
        decoder, sampling = self._session.decoder, self.manifest.sampling
        prompt = self._embed(tokens, log_mel)
        sampler = Sampler(SamplingSettings(), sampling.suppress_tokens, self.manifest.text.final_logit_softcap)
        logits = prefill(decoder, prompt)
        return list(decode(decoder, self._embedder, sampler, logits, len(tokens), stop_tokens, count))

    def _embed(self, tokens: Sequence[int], log_mel: Float32Array | None) -> PromptEmbeddings:
        embeddings = None if log_mel is None else np.asarray(self.audio_embeddings(log_mel))
        return self._embedder.embed(tokens, self.manifest.audio, embeddings)
