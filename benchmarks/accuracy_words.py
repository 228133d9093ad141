"""Spoken words for benchmarks/accuracy.py: the thirty of Speech Commands, spoken by espeak-ng and laid over noise.

As in that collection, nobody who speaks in the test set speaks in the training set. A query is one second of sound, and
the model's input the spectrogram that a handler would make of it. The same seed makes the same words, to the last bit.

Knows sound and espeak-ng (the wheel `espeakng-loader` brings its library and voices). Knows nothing of networks.
"""

from __future__ import annotations

import ctypes
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ts_parity.wire import Array

# Pete Warden, Speech Commands, 2017, version 1: the set of the paper's row.
WORDS = (
    "yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go",
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
    "bed", "bird", "cat", "dog", "happy", "house", "marvin", "sheila", "tree", "wow",
)  # fmt: skip
ACCENTS = ("en", "en-us", "en-us-nyc", "en-029", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd")
RATE_HZ = 22_050
"""Of espeak-ng's sound; a query is a second of it."""
SIDE = 32
"""Bands of the spectrogram, and moments."""
_LOWEST_HZ, _HIGHEST_HZ, _WINDOW = 80.0, 8_000.0, 1024
NOISES = ("white", "pink", "hum", "babble")
_LEAST_DB, _MOST_DB = 0.0, 25.0
"""Signal to noise: from as loud as the word to hardly heard."""
_TEST_EVERY = 5
"""Of the voices every fifth speaks in the test set alone."""


@dataclass(frozen=True)
class Utterance:
    """One word by one speaker. `words_a_minute` and `pitch` (0 to 99) are espeak-ng's own units."""

    word: str
    accent: str
    voice: str
    words_a_minute: int
    pitch: int
    seed: int


def make_words(train: int, test: int, seed: int = 0) -> tuple[Array, Array, Array, Array]:
    """-> spectrograms (n, 1, SIDE, SIDE) and indices into WORDS, to learn from and to score."""
    dice = np.random.default_rng(seed)
    voices = _voices()
    speakers = [voice for n, voice in enumerate(voices) if n % _TEST_EVERY], voices[::_TEST_EVERY]
    parts = []
    for count, voices_of_part in zip((train, test), speakers, strict=True):
        told = list(draw_utterances(count, voices_of_part, dice))
        sounds = _placed(spoken(told), dice)
        noisy = with_noise(sounds, dice)
        parts += [spectrogram(noisy), np.array([WORDS.index(each.word) for each in told])]
    return parts[0], parts[1], parts[2], parts[3]


def draw_utterances(count: int, voices: Sequence[str], dice: np.random.Generator) -> Iterator[Utterance]:
    for _ in range(count):
        yield Utterance(
            word=WORDS[dice.integers(len(WORDS))],
            accent=ACCENTS[dice.integers(len(ACCENTS))],
            voice=voices[dice.integers(len(voices))],
            words_a_minute=int(dice.integers(110, 230)),
            pitch=int(dice.integers(20, 80)),
            seed=int(dice.integers(1, 2**31)),
        )


# ---- espeak-ng ---------------------------------------------------------------------------------------------------


def spoken(utterances: Sequence[Utterance]) -> list[Array]:
    """The sound of each, in [-1, 1]. In a process of its own: espeak-ng's dice go on from one word to the next."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_speak_all, list(utterances)).result()


def _voices() -> list[str]:
    """Ways of speaking that espeak-ng brings, whatever the accent."""
    import espeakng_loader

    return sorted(file.name for file in (Path(espeakng_loader.get_data_path()) / "voices" / "!v").iterdir())


# speak_lib.h of espeak-ng
_AUDIO_OUTPUT_SYNCHRONOUS, _RATE, _PITCH, _CHARACTERS, _UTF8 = 2, 1, 3, 1, 1
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


def _speak_all(utterances: Sequence[Utterance]) -> list[Array]:
    import espeakng_loader

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    rate = library.espeak_Initialize(_AUDIO_OUTPUT_SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), 0)
    if rate != RATE_HZ:
        raise RuntimeError(f"espeak-ng speaks at {rate} Hz, not {RATE_HZ}")
    heard: list[Array] = []

    def hear(samples: ctypes._Pointer, count: int, events: int) -> int:  # type: ignore[type-arg]
        if samples and count:
            heard.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    callback = _CALLBACK(hear)
    library.espeak_SetSynthCallback(callback)
    sounds = []
    for each in utterances:
        heard.clear()
        name = f"{each.accent}+{each.voice}"
        if library.espeak_SetVoiceByName(name.encode()) != 0:
            raise RuntimeError(f"espeak-ng has no voice {name}")
        library.espeak_SetParameter(_RATE, each.words_a_minute, 0)
        library.espeak_SetParameter(_PITCH, each.pitch, 0)
        # Breath and flutter are dice; without a seed they are the clock's.
        ctypes.CDLL(None).srand(each.seed)
        library.espeak_ng_SetRandSeed(each.seed)
        text = each.word.encode() + b"\0"
        library.espeak_Synth(text, len(text), 0, _CHARACTERS, 0, _UTF8, None, None)
        library.espeak_Synchronize()
        sounds.append(np.concatenate(heard).astype(np.float32) / 2**15)
    return sounds


# ---- a second of sound, and what a handler makes of it ------------------------------------------------------------


def _placed(sounds: Sequence[Array], dice: np.random.Generator) -> Array:
    """(n, RATE_HZ): each begins anywhere in its second where it has room, and is cut where it has none."""
    seconds = np.zeros((len(sounds), RATE_HZ), dtype=np.float32)
    for second, sound in zip(seconds, sounds, strict=True):
        loud = np.flatnonzero(np.abs(sound) > 0.01)
        word = sound[loud[0] : loud[-1] + 1][:RATE_HZ] if len(loud) else sound[:0]
        begin = int(dice.integers(0, RATE_HZ - len(word) + 1))
        second[begin : begin + len(word)] = word
    return seconds


def with_noise(seconds: Array, dice: np.random.Generator) -> Array:
    """(n, RATE_HZ): each over a noise of one kind, by so many decibels."""
    noisy = np.empty_like(seconds)
    for n, second in enumerate(seconds):
        noise = _noise(NOISES[dice.integers(len(NOISES))], seconds, dice)
        ratio = 10 ** (dice.uniform(_LEAST_DB, _MOST_DB) / 20)
        noisy[n] = second + noise * (_loudness(second) / (ratio * max(_loudness(noise), 1e-6)))
    return noisy


def _noise(kind: str, seconds: Array, dice: np.random.Generator) -> Array:
    if kind == "babble":  # three who say something else
        return np.asarray(seconds[dice.integers(len(seconds), size=3)].sum(0))
    if kind == "hum":  # of the mains, with overtones
        moments = np.arange(RATE_HZ) / RATE_HZ
        tones = [np.sin(2 * np.pi * (50.0 * part * moments + dice.random())) / part for part in range(1, 8)]
        return np.sum(tones, axis=0).astype(np.float32)
    white = dice.standard_normal(RATE_HZ).astype(np.float32)
    if kind == "white":
        return white
    spectrum = np.fft.rfft(white)
    return np.fft.irfft(spectrum / np.sqrt(np.arange(len(spectrum)) + 1.0), RATE_HZ).astype(np.float32)


def _loudness(sound: Array) -> float:
    return float(np.sqrt(np.square(sound).mean()))


def spectrogram(seconds: Array) -> Array:
    """(n, RATE_HZ) -> (n, 1, SIDE, SIDE): logarithms of the power in SIDE bands at SIDE moments, each of mean 0 and
    spread 1 over its query, as in the paper's preprocessing.
    """
    hop = RATE_HZ // SIDE
    window, bands = np.hanning(_WINDOW).astype(np.float32), _bands()
    made = np.empty((len(seconds), 1, SIDE, SIDE), dtype=np.float32)
    for n, second in enumerate(seconds):
        padded = np.pad(second, (0, _WINDOW))
        frames = np.stack([padded[hop * moment :][:_WINDOW] for moment in range(SIDE)])
        power = np.square(np.abs(np.fft.rfft(frames * window)))  # (moments, frequencies)
        logs = np.log(power @ bands.T + 1e-4).T
        made[n, 0] = (logs - logs.mean()) / max(float(logs.std()), 1e-6)
    return made


def _bands() -> Array:
    """(SIDE, frequencies): triangles of equal width on the mel scale."""

    def mel(hertz: Array) -> Array:
        return 2595.0 * np.log10(1.0 + hertz / 700.0)

    edges = np.linspace(mel(np.array(_LOWEST_HZ)), mel(np.array(_HIGHEST_HZ)), SIDE + 2)
    at = mel(np.fft.rfftfreq(_WINDOW, 1 / RATE_HZ))
    rising = (at - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - at) / np.diff(edges)[1:, None]
    return np.clip(np.minimum(rising, falling), 0.0, None).astype(np.float32)
