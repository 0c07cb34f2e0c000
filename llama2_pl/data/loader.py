"""The loader: numbered batches from a position on, left alone by Lightning.

Lightning rebuilds a torch ``DataLoader`` to put its own sampler in, and takes a stateful loader's state from rank 0
one batch too late or not at all. This loader is no ``DataLoader``: it is asked for batch numbers, and the first
number comes from the Trainer's own count of trained batches, which every checkpoint has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

from torch.utils.data import DataLoader, Dataset


class NumberedBatches(Protocol):
    """Batches as a pure function of their number; defined for every ``n >= 0``."""

    def __len__(self) -> int:
        """Batches of one pass."""
        ...

    def __getitem__(self, n: int) -> Any: ...


class Position(NamedTuple):
    """Where training stands."""

    trained: int
    """Batches trained since the run began: the number of the next batch."""
    in_pass: int
    """How many of them belong to the pass that is under way."""


class BatchLoader:
    """An iterable over one pass of numbered batches, starting where training stands.

    ``position`` is asked when the first batch is, not before: Lightning creates iterators early, and earlier than
    it restores its counters if ``trainer.estimated_stepping_batches`` was read in ``configure_optimizers``.
    """

    def __init__(
        self,
        batches: NumberedBatches,
        position: Callable[[], Position] | None = None,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self.batches = batches
        self.num_workers = num_workers
        self.pin_memory = pin_memory
        self._position = position or (lambda: Position(0, 0))

    def __len__(self) -> int:
        """Batches of a whole pass, wherever it was entered: Lightning adds the trained ones by itself."""
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        trained, in_pass = self._position()
        numbers = range(trained, trained + len(self) - in_pass)
        yield from DataLoader(
            _MapStyle(self.batches),
            batch_size=None,
            sampler=numbers,
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            collate_fn=_as_it_is,
        )


class ResumableLoader(BatchLoader):
    """The training loader. Lightning saves its state, so it knows that a pass can be entered in the middle."""

    def __init__(
        self,
        batches: NumberedBatches,
        position: Callable[[], Position],
        trained: Callable[[], int],
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        super().__init__(batches, position, num_workers, pin_memory)
        self._trained = trained

    def state_dict(self) -> dict[str, int]:
        return {"batches": self._trained()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Nothing to restore, the position is Lightning's: only check that the two agree."""
        if state["batches"] != self._trained():
            raise ValueError(
                f"the checkpoint was written after {state['batches']} batches and the data stands at "
                f"{self._trained()}: give the data module itself to the Trainer, "
                "trainer.fit(model, datamodule=..., ckpt_path=...)"
            )


class _MapStyle(Dataset):
    def __init__(self, batches: NumberedBatches) -> None:
        self.batches = batches

    def __getitem__(self, n: int) -> Any:
        return self.batches[n]


def _as_it_is(batch: Any) -> Any:
    return batch
