"""A device engine for the fake GPU: amplitude is the scaled pattern, phase twice that less one.

It is the network of `edgexnas.testing.visible_network`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

AREA = 64 * 64


class RootEngine:
    name, precision, reason = "root", "float32", "a test asked for it"
    input_shape, output_shape = (1, 64, 64), (2, 64, 64)

    def __init__(self, session: Any, fake: Any, sizes: tuple[int, ...] = (1, 8)) -> None:
        self.session = session
        self.sizes = sizes
        self.any_count = False
        self.batch = sizes[-1]
        self.runs: list[int] = []
        self._fake = fake

    def size_of(self, count: int) -> int:
        return next(size for size in self.sizes if size >= count)

    @staticmethod
    def answer(scaled: np.ndarray) -> np.ndarray:
        return np.stack([scaled, 2 * scaled - 1], axis=1).astype(np.float32)

    def enqueue(self, inputs: int, outputs: int, count: int, stream: Any, *, kept: int = 0) -> None:
        size = self.size_of(count)

        def run() -> None:
            self.runs.append(size)
            given = self._fake.memory(inputs, 4 * size * AREA).view(np.float32)
            answer = self.answer(given.reshape(-1, 64, 64))
            self._fake.memory(outputs, 8 * size * AREA).view(np.float32)[:] = answer.ravel()

        stream.queue.append(run)

    def run(self, inputs: np.ndarray) -> np.ndarray:
        return self.answer(inputs[:, 0])

    def close(self) -> None:
        self.closed = True
