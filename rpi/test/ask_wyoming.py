"""Asks a Wyoming server what is said in a sound, as Home Assistant does: ask_wyoming.py PORT MODEL LANGUAGE SOUND."""

from __future__ import annotations

import asyncio
import sys
import wave

from wyoming.asr import Transcribe, Transcript
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncTcpClient
from wyoming.info import Describe, Info


async def main(port: int, model: str, language: str, sound: str) -> None:
    """Prints the names of all models, then the answer of one."""
    async with AsyncTcpClient("127.0.0.1", port) as client:
        await client.write_event(Describe().event())
        event = await client.read_event()
        assert event is not None
        print(*(each.name for program in Info.from_event(event).asr for each in program.models))
    async with AsyncTcpClient("127.0.0.1", port) as client:
        await client.write_event(Transcribe(name=model, language=language).event())
        with wave.open(sound) as file:
            shape = file.getframerate(), file.getsampwidth(), file.getnchannels()
            await client.write_event(AudioStart(*shape).event())
            while content := file.readframes(1024):
                await client.write_event(AudioChunk(*shape, content).event())
        await client.write_event(AudioStop().event())
        event = await client.read_event()
        assert event is not None
        print(Transcript.from_event(event).text if Transcript.is_type(event.type) else event)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), *sys.argv[2:]))
