"""Show how the package is built: its import circles, and the files that one frame passes.

Run: python tools/structure.py [--typing]
     python tools/structure.py --frame-path serve|stream|process [--source URL]

Without --frame-path, it prints the circles of imports, read from the sources alone, and ends with
status 1 if there is one: among modules, and among siblings, which are the folders and modules side
by side in any package that holds packages. Imports inside functions count like all others. Those
under `if TYPE_CHECKING` never run; circles that only they close are shown apart, and fail with
--typing. Names that a package gives on first use, through its `__getattr__`, are no imports of the
package, also where it repeats them for typing; but who imports such a name imports the module that
it comes from. A module that is only named in a string, to be imported by it, is not seen.

With --frame-path, it runs one way of a frame on the CPU, from a simulated detector or another
source, and prints the files whose functions run while frames go through, after start-up and before
the end.
"""

from __future__ import annotations

import argparse
import ast
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "edgexnas"
BUNDLE = ROOT / "tests" / "bundles" / "v1.edgex"
KEY = ROOT / "tests" / "bundles" / "v1.pub.pem"

FRAMES = 12
"""Frames that go through while it is recorded."""

WARM_UP = 20
"""Frames before: more than a service takes to estimate the background."""

PATIENCE_S = 120.0
DETECTOR = "sim://hedm?shape=128x128&peaks=10&rate=50"
"""It has no end, so that none is recorded."""

Place = Literal["module", "function", "typing"]
Arrows = Mapping[str, set[str]]


class Import(NamedTuple):
    """One module of the package imports another.

    Attributes
    ----------
    importer, imported
        Names of modules.
    line
        Where the importer says so.
    place
        "function" in a function, "typing" under `if TYPE_CHECKING`, otherwise "module".
    """

    importer: str
    imported: str
    line: int
    place: Place


def find_modules(package: Path) -> dict[str, Path]:
    """Find the modules of a package: name → file."""
    names = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def find_imports(modules: Mapping[str, Path]) -> list[Import]:
    """Read what the modules import of one another."""
    trees = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in modules.items()}
    packages = {name for name, path in modules.items() if path.name == "__init__.py"}
    said = {
        name: list(_statements(tree, name if name in packages else name.rpartition(".")[0]))
        for name, tree in trees.items()
    }
    given = {
        name: {
            alias.asname or alias.name: (base, alias.name)
            for base, alias, _, _ in said[name]
            if base is not None
        }
        for name in packages
    }
    found = []
    for importer, statements in said.items():
        lazy = any(_defines_getattr(node) for node in trees[importer].body)
        for base, alias, line, place in statements:
            if not (lazy and place == "typing"):
                targets = _targets(importer, base, alias.name, modules, given)
                found += [Import(importer, imported, line, place) for imported in targets]
    return found


def _statements(
    tree: ast.Module, package: str
) -> Iterator[tuple[str | None, ast.alias, int, Place]]:
    """Give the base of each `from base import alias`, None for `import alias`."""

    def visit(node: ast.AST, place: Place) -> Iterator[tuple[str | None, ast.alias, int, Place]]:
        if isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *filter(None, [node.module])])
            for alias in node.names:
                yield base, alias, node.lineno, place
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield None, alias, node.lineno, place
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and place == "module":
            for inner in node.body:
                yield from visit(inner, "function")
        elif isinstance(node, ast.If) and _is_type_checking(node.test):
            for inner in node.body:
                yield from visit(inner, "typing")
            for inner in node.orelse:
                yield from visit(inner, place)
        else:
            for child in ast.iter_child_nodes(node):
                yield from visit(child, place)

    yield from visit(tree, "module")


def _defines_getattr(node: ast.stmt) -> bool:
    """Tell whether a statement of a module is `def __getattr__` or assigns to this name."""
    targets = node.targets if isinstance(node, ast.Assign) else []
    assigned = {name.id for t in targets for name in ast.walk(t) if isinstance(name, ast.Name)}
    return "__getattr__" in {getattr(node, "name", None), *assigned}


def _is_type_checking(test: ast.expr) -> bool:
    name = test.attr if isinstance(test, ast.Attribute) else getattr(test, "id", None)
    return name == "TYPE_CHECKING"


def _targets(
    importer: str,
    base: str | None,
    name: str,
    modules: Mapping[str, Path],
    given: Mapping[str, Mapping[str, tuple[str, str]]],
) -> set[str]:
    """Tell which modules an import needs: those that it names, and the packages around them.

    The packages around the importer are there already, unless it names them.
    """
    named = {name} if base is None else set(_followed(base, name, modules, given))
    around = {package for module in named for package in _packages(module)}
    return (named | (around - set(_packages(importer)))) & modules.keys() - {importer}


def _followed(
    base: str,
    name: str,
    modules: Mapping[str, Path],
    given: Mapping[str, Mapping[str, tuple[str, str]]],
) -> Iterator[str]:
    """Follow a name through the packages that give it to the module that it comes from."""
    seen = set()
    while (base, name) not in seen:
        seen.add((base, name))
        if f"{base}.{name}" in modules:
            yield f"{base}.{name}"
            return
        yield base
        base, name = given.get(base, {}).get(name, (base, name))


def _packages(module: str) -> list[str]:
    """Name the packages around a module, the outermost first."""
    parts = module.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def module_arrows(imports: list[Import]) -> dict[str, set[str]]:
    """Draw an arrow from each module to those that it imports."""
    arrows = defaultdict(set)
    for one in imports:
        arrows[one.importer].add(one.imported)
    return arrows


def packages_with_rooms(modules: Mapping[str, Path]) -> list[str]:
    """Name the packages that hold packages."""
    inner = [name for name, path in modules.items() if path.name == "__init__.py"]
    return sorted({name.rpartition(".")[0] for name in inner} - {""})


def imports_between(imports: list[Import], package: str) -> dict[tuple[str, str], list[Import]]:
    """Gather the imports from one folder or module directly in a package to another one."""
    between = defaultdict(list)
    for one in imports:
        if one.importer.startswith(f"{package}.") and one.imported.startswith(f"{package}."):
            pair = (_child(one.importer, package), _child(one.imported, package))
            if pair[0] != pair[1]:
                between[pair].append(one)
    return between


def _child(module: str, package: str) -> str:
    return ".".join(module.split(".")[: package.count(".") + 2])


def find_circles(arrows: Arrows) -> list[tuple[str, ...]]:
    """Find the shortest circle through each arrow that is part of one, each circle once."""
    circles = set()
    for start, ends in arrows.items():
        for end in ends:
            way = _shortest_way(arrows, end, start)
            if way is not None:
                first = way.index(min(way))
                circles.add((*way[first:], *way[:first]))
    return sorted(circles, key=lambda circle: (len(circle), circle))


def _shortest_way(arrows: Arrows, start: str, end: str) -> list[str] | None:
    before = {start: start}
    waiting = deque([start])
    while waiting:
        here = waiting.popleft()
        if here == end:
            way = [here]
            while way[-1] != start:
                way.append(before[way[-1]])
            return way[::-1]
        for there in sorted(arrows.get(here, ())):
            if there not in before:
                before[there] = here
                waiting.append(there)
    return None


def count_knots(circles: Iterable[tuple[str, ...]]) -> int:
    """Count the groups of circles that hang together."""
    knots: list[set[str]] = []
    for circle in circles:
        touched = [knot for knot in knots if knot.intersection(circle)]
        knots = [knot for knot in knots if knot not in touched]
        knots.append(set(circle).union(*touched))
    return len(knots)


class Circles(NamedTuple):
    """The circles of imports.

    Attributes
    ----------
    modules
        Each as names of modules, in the order of their imports.
    siblings
        Each as names of folders and modules side by side in a package.
    """

    modules: list[tuple[str, ...]]
    siblings: list[tuple[str, ...]]


def circles_of(imports: list[Import], modules: Mapping[str, Path]) -> Circles:
    """Find all circles that imports make."""
    siblings = []
    for package in packages_with_rooms(modules):
        arrows = defaultdict(set)
        for start, end in imports_between(imports, package):
            arrows[start].add(end)
        siblings += find_circles(arrows)
    return Circles(find_circles(module_arrows(imports)), siblings)


def all_circles(package: Path) -> tuple[list[Import], Circles, Circles]:
    """Give the imports in a package's folder, the circles, and those that only typing closes."""
    modules = find_modules(package)
    imports = find_imports(modules)
    running = circles_of([one for one in imports if one.place != "typing"], modules)
    every = circles_of(imports, modules)
    for_typing = (
        [circle for circle in found if circle not in there]
        for found, there in zip(every, running, strict=True)
    )
    return imports, running, Circles(*for_typing)


def describe(circle: tuple[str, ...], imports: list[Import], package: str | None) -> list[str]:
    """Say what closes a circle: a line for the circle, and one for each arrow."""
    lines = [" -> ".join(_short(name) for name in (*circle, circle[0]))]
    for start, end in zip(circle, (*circle[1:], circle[0]), strict=True):
        if package is None:
            found = [one for one in imports if (one.importer, one.imported) == (start, end)]
        else:
            found = imports_between(imports, package)[start, end]
        one = min(found, key=lambda one: ("module", "function", "typing").index(one.place))
        more = f", and {len(found) - 1} more" if len(found) > 1 else ""
        place = {"module": "", "function": ", in a function", "typing": ", for typing"}[one.place]
        lines.append(
            f"    {_short(one.importer)}:{one.line} imports {_short(one.imported)}{place}{more}"
        )
    return lines


def _short(module: str) -> str:
    return module.removeprefix(f"{PACKAGE}.")


def print_circles(*, typing: bool) -> bool:
    """Print all circles; tell whether there are none that fail."""
    imports, running, for_typing = all_circles(ROOT / PACKAGE)
    for circles, title in ((running, ""), (for_typing, " that only imports for typing close")):
        for found, kind in zip(circles, circles._fields, strict=True):
            print(f"{len(found)} circles among {kind}{title}, in {count_knots(found)} knots")
            for circle in found:
                package = circle[0].rpartition(".")[0] if kind == "siblings" else None
                print(*describe(circle, imports, package), sep="\n")
            print()
    return not any(running) and not (typing and any(for_typing))


class Recorder:
    """Counts the calls of the package's functions, by module, in order of the first.

    A function that runs already when recording starts, such as the loop of a thread, is seen when
    it calls another one.
    """

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self._recording = False

    @contextmanager
    def new_threads(self) -> Iterator[None]:
        """Watch threads that start in the with-block."""
        before = threading.getprofile()
        threading.setprofile(self._see)
        try:
            yield
        finally:
            threading.setprofile(before)

    @contextmanager
    def recording(self, *, this_thread: bool) -> Iterator[None]:
        """Record in the with-block; this thread too, if it carries frames."""
        with ExitStack() as after:
            after.enter_context(self._compiled_functions())
            self._recording = True
            after.callback(setattr, self, "_recording", False)
            if this_thread:
                after.callback(sys.setprofile, sys.getprofile())
                sys.setprofile(self._see)
            yield

    def _see(self, frame: FrameType, event: str, _: object) -> None:
        if self._recording:
            if event == "call":
                if frame.f_back is not None:
                    self._note(frame.f_back, 0)
                self._note(frame, 1)
            elif event == "c_call":
                self._note(frame, 0)

    def _note(self, frame: FrameType, calls: int) -> None:
        # Not the file name: the methods that a dataclass makes have none.
        module = frame.f_globals.get("__name__", "")
        if module.partition(".")[0] == PACKAGE:
            self.calls[module] += calls

    @contextmanager
    def _compiled_functions(self) -> Iterator[None]:
        """Put something that counts before compiled functions, whose calls are not seen."""
        replaced = [
            (module, name, value)
            for module_name, module in list(sys.modules.items())
            if module_name.partition(".")[0] == PACKAGE
            for name, value in vars(module).items()
            if hasattr(value, "py_func")
        ]
        for module, name, value in replaced:
            setattr(module, name, _Counted(value, self.calls))
        try:
            yield
        finally:
            for module, name, value in replaced:
                setattr(module, name, value)


class _Counted:
    def __init__(self, compiled: Any, calls: Counter[str]) -> None:
        self._compiled = compiled
        self._calls = calls

    def __call__(self, *given: Any) -> Any:
        self._calls[self._compiled.py_func.__module__] += 1
        return self._compiled(*given)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._compiled, name)


def _record_process(recorder: Recorder, source: str) -> None:
    from edgexnas.device import Predictor
    from edgexnas.device.sources import open_event_source

    with closing(open_event_source(source)) as opened:
        events = islice(opened.events(), 5)
        frames = [event.pixels for event in events if hasattr(event, "pixels")]
    with Predictor(BUNDLE, trust=KEY, engine="onnxruntime", cache=False) as predictor:
        predictor.process(frames[0])
        predictor.process(frames[1])
        with recorder.recording(this_thread=True):
            for number in range(FRAMES):
                predictor.process(frames[number % len(frames)])


def _record_stream(recorder: Recorder, source: str) -> None:
    from edgexnas.device import Predictor

    with ExitStack() as after:
        after.enter_context(recorder.new_threads())
        predictor = after.enter_context(
            Predictor(BUNDLE, trust=KEY, engine="onnxruntime", cache=False)
        )
        results: Any = predictor.stream(source)
        after.callback(results.close)
        for _ in range(2):
            next(results)
        with recorder.recording(this_thread=True):
            for _ in range(FRAMES):
                next(results)


def _record_serve(recorder: Recorder, source: str) -> None:
    from edgexnas.device.serving import open_service

    with tempfile.TemporaryDirectory() as folder, ExitStack() as after:
        configuration = Path(folder) / "serve.toml"
        configuration.write_text(
            f"""
            source = "{source}"
            [predictor]
            bundle = "{BUNDLE}"
            trust = "{KEY}"
            engine = "onnxruntime"
            cache = "cache"
            [[sinks]]
            kind = "hdf5"
            folder = "results"
            [monitoring]
            port = 0
            """
        )
        opened = open_service(configuration)
        after.callback(opened.close)
        service = opened.service
        after.callback(service.close)
        with recorder.new_threads():
            service.start()

        def wait_for(frames: int) -> None:
            end = time.monotonic() + PATIENCE_S
            while service.status().counts["done"] < frames:
                if time.monotonic() > end:
                    raise TimeoutError(f"not {frames} frames of {source} in {PATIENCE_S:g} s")
                service.raise_failure()
                time.sleep(0.002)

        wait_for(WARM_UP)
        # This thread only looks on.
        with recorder.recording(this_thread=False):
            wait_for(service.status().counts["done"] + FRAMES)
        service.stop()
        service.wait()


WAYS: dict[str, Callable[[Recorder, str], None]] = {
    "serve": _record_serve,
    "stream": _record_stream,
    "process": _record_process,
}


def frame_path(way: str, source: str = DETECTOR) -> dict[str, int]:
    """Run one way of a frame and count the calls in each file, in order of the first.

    Parameters
    ----------
    way
        "serve": a service with an HDF5 sink; "stream" and "process": of a predictor.
    source
        URL of a source of frames with Bragg peaks.

    Returns
    -------
    File, relative to the repository → calls of its functions while `FRAMES` frames went through;
    0 if a function of it ran all the time.
    """
    import edgexnas

    modules = find_modules(ROOT / PACKAGE)
    if Path(edgexnas.__file__).resolve() != modules[PACKAGE]:
        raise SystemExit(
            f"error: {PACKAGE} is imported from another place than this repository; "
            "set PYTHONPATH to its root"
        )
    recorder = Recorder()
    WAYS[way](recorder, source)
    return {
        modules[name].relative_to(ROOT).as_posix(): calls for name, calls in recorder.calls.items()
    }


def print_frame_path(way: str, source: str) -> None:
    """Print the files that a frame passes."""
    calls = frame_path(way, source)
    print(f"{way}: {len(calls)} files; calls while {FRAMES} frames of {source} go through")
    for path, count in calls.items():
        print(f"{count:7d}  {path}")


def main() -> int:
    """Do what the command line says; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--typing", action="store_true", help="fail on circles for typing too")
    parser.add_argument("--frame-path", choices=WAYS, help="show the files that a frame passes")
    parser.add_argument("--source", default=DETECTOR, metavar="URL", help="default: %(default)s")
    options = parser.parse_args()
    if options.frame_path:
        print_frame_path(options.frame_path, options.source)
        return 0
    return 0 if print_circles(typing=options.typing) else 1


if __name__ == "__main__":
    sys.exit(main())
