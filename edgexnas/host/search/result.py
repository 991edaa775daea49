"""What a search found."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgexnas.errors import ConfigurationError, SearchError
from edgexnas.host.measuring.measure_source import labelled, source_in_words
from edgexnas.host.measuring.objectives import (
    Objective,
    hypervolume,
    hypervolume_curve,
    pareto_front,
)
from edgexnas.host.networks.search_space import SearchSpace
from edgexnas.host.search.evaluation import load_checkpoint, trial_seed
from edgexnas.host.search.journal import Trial, read_journal
from edgexnas.host.search.run_folder import checkpoint_path, load_run_dataset, load_run_spaces
from edgexnas.host.search.tasks import find_task

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from edgexnas.host.data.dataset import Dataset
    from edgexnas.host.exporting.bundle_export import ExportReport

__all__ = ["Candidate", "SearchResult", "front_of"]


@dataclass(frozen=True)
class Candidate:
    """A network that was trained and scored.

    Attributes
    ----------
    trial
        Number of the evaluation.
    space
        Name of its search space.
    configuration
        Hyperparameters of architecture and training.
    objectives
        The numbers that the search minimised.
    metrics
        Everything that is known of it, in the units of the objectives or of the name.
    checkpoint
        Trained weights, or None where they were not kept.
    """

    trial: int
    space: str
    configuration: Mapping[str, Any]
    objectives: Mapping[str, float]
    metrics: Mapping[str, float]
    checkpoint: Path | None


@dataclass(frozen=True)
class SearchResult:
    """The evaluations of a run and what is best among them.

    Attributes
    ----------
    folder
        The run folder.
    spaces
        The spaces that were searched, by name.
    trials
        Every evaluation that ended, failed ones too, in the order in which they did.
    kept
        How many of them an earlier session of the run had made.
    """

    folder: Path
    spaces: Mapping[str, SearchSpace]
    objectives: tuple[Objective, ...]
    trials: tuple[Trial, ...]
    description: Mapping[str, Any]
    kept: int = 0
    dataset: Dataset | None = None
    signing_key: str | Path | None = None

    @classmethod
    def load(
        cls, folder: str | Path, *, spaces: Sequence[SearchSpace] | None = None
    ) -> SearchResult:
        """Read a run folder, also while the search goes on.

        Parameters
        ----------
        spaces
            The spaces that were searched; None takes them from the folder's ``run.toml``, which
            knows those of `SPACES`, narrowed ones, and those named by ``module:ATTRIBUTE``.

        Raises
        ------
        SearchError
            If the folder holds no run or a damaged one.
        ConfigurationError
            If a space is not known.
        """
        place = Path(folder)
        description, trials = read_journal(place)
        known = load_run_spaces(place) if spaces is None else {s.name: s for s in spaces}
        task = find_task(description["task"])
        objectives = tuple(
            labelled(task.objectives[name], description.get("measure"))
            for name in description["objectives"]
        )
        return cls(place, known, objectives, tuple(trials), description)

    @functools.cached_property
    def candidates(self) -> list[Candidate]:
        """All networks that were trained, in the order of their numbers."""
        done = sorted((t for t in self.trials if t.status == "done"), key=lambda t: t.number)
        return [self._candidate(trial) for trial in done]

    @property
    def pareto(self) -> list[Candidate]:
        """Candidates on the Pareto front, sorted by the first objective.

        A training that went on and came to nothing worse counts once, by its last part.
        """
        known = {candidate.trial: candidate for candidate in self.candidates}
        surpassed: set[int] = set()
        for trial in self.trials:
            if trial.parent in known and trial.number in known:
                before, after = known[trial.parent].objectives, known[trial.number].objectives
                if all(after[name] <= before[name] for name in before):
                    surpassed.add(trial.parent)
        last = [c for c in self.candidates if c.trial not in surpassed]
        return front_of(last, self.objectives)

    def best(self, objective: str) -> Candidate:
        """Return the candidate with the lowest value of an objective, or of any metric.

        Raises
        ------
        ConfigurationError
            If there is no such number.
        SearchError
            If no evaluation succeeded.
        """
        if not self.candidates:
            raise SearchError(
                f"no evaluation of {self.folder} succeeded; see the reasons in its table()"
            )
        if any(objective not in candidate.metrics for candidate in self.candidates):
            known = sorted(self.candidates[0].metrics)
            raise ConfigurationError(f"{objective!r} was not recorded; specify one of {known}")
        others = [o.name for o in self.objectives]
        # Ties go to what is better otherwise, so that the best is on the front.
        return min(
            self.candidates,
            key=lambda c: (
                c.metrics[objective],
                *(c.objectives[name] for name in others),
                # Of a training that went on and found nothing better, the last part.
                c.trial if "budget" not in self.description else -c.trial,
            ),
        )

    @property
    def hypervolume(self) -> float:
        """Hypervolume of the front on the objectives' fixed scales, from 0 to 1."""
        return hypervolume([c.objectives for c in self.pareto], self.objectives)

    @property
    def hypervolume_curve(self) -> list[float]:
        """Hypervolume after each evaluation, in the order in which they ended."""
        rows = [self._candidate(t).objectives if t.status == "done" else None for t in self.trials]
        return hypervolume_curve(rows, self.objectives)

    @property
    def failures(self) -> dict[str, int]:
        """How many evaluations failed, by reason."""
        return dict(Counter(trial.reason for trial in self.trials if trial.status == "failed"))

    def table(self) -> pd.DataFrame:
        """Return every evaluation that ended, one a row, by trial number.

        Columns: trial, the objectives, pareto, space, status, reason, message, then the
        hyperparameters as ``config.NAME``, then all other metrics and, of a search with a budget,
        ``stage``, ``slot_s``, ``parent`` and ``repeats`` (see
        `edgexnas.host.search.journal.Trial`), then ``seconds`` (wall time of the evaluation) and
        ``finished`` (seconds since the search began) and, where latency or energy were measured,
        ``measure``, their source.
        """
        import pandas as pd

        front = {candidate.trial for candidate in self.pareto}
        rows = [_row(trial, front) for trial in sorted(self.trials, key=lambda t: t.number)]
        table = pd.DataFrame(rows)
        if rows:
            last = ["seconds", "finished"]
            config = [c for c in table.columns if c.startswith("config.")]
            objectives = [o.name for o in self.objectives if o.name in table.columns]
            first = ["trial", *objectives, "pareto", "space", "status", "reason", "message"]
            metrics = [c for c in table.columns if c not in (*first, *config, *last)]
            table = table[[*first, *config, *metrics, *last]]
        if rows and "measure" in self.description:
            # Beside every latency and energy stands where it comes from.
            table["measure"] = source_in_words(self.description["measure"])
        return table

    def __str__(self) -> str:
        """Write every evaluation with its objectives, one a line."""
        import pandas as pd

        # Of a wide table pandas prints a few columns alone.
        table = self.table().reindex(
            columns=["trial", *(o.name for o in self.objectives), "pareto", "space", "status"]
        )
        lines = table.to_string(
            index=False,
            na_rep="",
            float_format="{:.4g}".format,
            max_rows=pd.options.display.max_rows,
        )
        if "measure" in self.description:
            lines += f"\nlatency, energy: {source_in_words(self.description['measure'])}"
        return lines

    def model(self, candidate: Candidate) -> nn.Module:
        """Build a candidate's network with its trained weights, in evaluation mode.

        Raises
        ------
        SearchError
            If its weights were not kept or cannot be read.
        """
        if candidate.checkpoint is None:
            raise SearchError(
                f"the weights of trial {candidate.trial} were not kept, because another candidate "
                "beats it; choose one of pareto or search with keep_checkpoints='all'"
            )
        return load_checkpoint(candidate.checkpoint, self._space(candidate.space))

    def export(
        self,
        path: str | Path,
        *,
        candidate: Candidate | None = None,
        signing_key: str | Path | None = None,
        quantise_for: str | None = None,
        progress: Callable[[str], None] | None = None,
        **options: Any,
    ) -> ExportReport:
        """Quantise a candidate and write it as a signed bundle.

        Parameters
        ----------
        candidate
            None takes the best by the first objective.
        signing_key
            Private key file; None takes the one given to `optimize`.
        quantise_for
            Where to measure which recipe is the fastest within the accuracy gate, "local" or
            "ssh://HOST"; see `edgexnas.host.measuring.recipe_search`. Measurements are kept in the
            run's folder, so that an export that was stopped goes on. None measures nothing.
        progress
            Called with a line for each recipe that is measured.
        options
            Passed on to `edgexnas.host.exporting.bundle_export.export_bundle`.

        Raises
        ------
        ConfigurationError
            If there is no signing key.
        """
        from edgexnas.host.exporting.bundle_export import Origin, check_writable, export_bundle

        key = signing_key if signing_key is not None else self.signing_key
        if key is None:
            raise ConfigurationError("a bundle must be signed; specify signing_key=")
        chosen = candidate or self.best(self.objectives[0].name)
        dataset = self.dataset
        if dataset is None:
            dataset = load_run_dataset(self.folder, str(self.description["data"]))
        origin = Origin(
            seed=trial_seed(int(self.description["seed"]), chosen.trial),
            search=str(self.description["search"]),
            trial=chosen.trial,
            configuration=dict(chosen.configuration),
        )
        model = self.model(chosen)
        # The parts of the search itself: a split follows from the data alone, without a seed.
        split = dataset.split()
        if quantise_for is not None:
            from edgexnas.host.measuring.recipe_search import choose_recipe

            check_writable(path)
            given = {n: options[n] for n in ("levels", "maximum_loss", "fine_tune") if n in options}
            options["choice"] = choose_recipe(
                model, dataset, split, quantise_for, signing_key=key,
                cache=self.folder / "measurements", progress=progress, **given,
            )  # fmt: skip
        return export_bundle(
            path,
            model=model,
            dataset=dataset,
            split=split,
            architecture=chosen.space,
            signing_key=key,
            origin=origin,
            **options,
        )

    def _space(self, name: str) -> SearchSpace:
        if name not in self.spaces:
            raise ConfigurationError(
                f"space {name} of {self.folder} is not known; pass it to "
                "SearchResult.load(spaces=), or search it by its name 'module:ATTRIBUTE', which "
                "the run keeps"
            )
        return self.spaces[name]

    def _candidate(self, trial: Trial) -> Candidate:
        # Weights of dominated candidates have been removed, see keep_checkpoints.
        path = checkpoint_path(self.folder, trial.number)
        return Candidate(
            trial.number,
            trial.space,
            trial.configuration,
            {o.name: trial.metrics[o.name] for o in self.objectives},
            trial.metrics,
            path if path.exists() else None,
        )


def front_of(candidates: Sequence[Candidate], objectives: Sequence[Objective]) -> list[Candidate]:
    """Candidates on the Pareto front, sorted by the first objective."""
    marks = pareto_front([[c.objectives[o.name] for o in objectives] for c in candidates])
    front = [c for c, mark in zip(candidates, marks, strict=True) if mark]
    return sorted(front, key=lambda c: tuple(c.objectives[o.name] for o in objectives))


def _row(trial: Trial, front: set[int]) -> dict[str, Any]:
    return {
        "trial": trial.number,
        "space": trial.space,
        "status": trial.status,
        "reason": trial.reason,
        "message": trial.message,
        "pareto": trial.number in front,
        **{f"config.{name}": value for name, value in trial.configuration.items()},
        **trial.metrics,
        **_place_on_ladder(trial),
        "seconds": trial.seconds,
        "finished": trial.finished,
    }


def _place_on_ladder(trial: Trial) -> dict[str, Any]:
    if not trial.slot_s:
        return {}
    return {
        "stage": trial.stage,
        "slot_s": trial.slot_s,
        "parent": trial.parent,
        "repeats": trial.repeats,
    }
