"""The layout's promises: where things are, who knows whom, and what a new resource takes."""

import ast
import json
import subprocess
import sys
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules, walk_packages

import pytest
from litestar import Controller, get
from litestar.routes import HTTPRoute

import temporal_api
from api import SECRET, assert_problem, bearer, service
from temporal_api import app, controllers
from temporal_api.auth import CurrentUser
from temporal_api.settings import Settings, from_env

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "temporal_api"

# Imports go from a higher number to a lower one; what is not named here is a tool of the controllers.
LEVELS = {"cli": 5, "app": 4, "devserver": 4, "controllers": 3, "worker": 3, "observe": 3, "settings": 1}
TOOLS = 2


def concept(name: str) -> str:
    """`temporal_api.controllers.orders` is part of `controllers`."""
    return [*name.split("."), "temporal_api"][1]


def imports(path: Path, *, for_types: bool = True) -> set[str]:
    """What a file imports, wherever in the file: modules, and names in them; also what only its annotations need."""
    tree = ast.parse(path.read_text())
    if not for_types:
        tree.body = [n for n in tree.body if not (isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def module_of(path: Path) -> str:
    """The module that a file is."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
MODULES = [module for module in FILES if module not in ("temporal_api", "temporal_api.__main__")]


def known(module: str, *, for_types: bool = True) -> set[str]:
    """The modules of this package that one imports, itself left out."""
    names = imports(FILES[module], for_types=for_types)
    return {name if name in FILES else name.rpartition(".")[0] for name in names} & set(MODULES) - {module}


def test_imports_go_one_way() -> None:
    """cli -> app -> controllers -> auth, requests, temporal, waiting, errors, ... -> settings."""
    for module in MODULES:
        for other in known(module):
            assert LEVELS.get(concept(module), TOOLS) >= LEVELS.get(concept(other), TOOLS), f"{module} imports {other}"
    assert "temporal_api.settings" in known("temporal_api.app")


def test_no_module_needs_itself() -> None:
    """There is no circle among the modules, but of what annotations name."""
    order = list(TopologicalSorter({module: known(module, for_types=False) for module in MODULES}).static_order())

    assert set(MODULES) == set(order)


def test_the_api_never_imports_the_worker() -> None:
    """A workflow's code may change, and stop, without the API: only the command line knows both."""
    users = {concept(module) for module in MODULES if "worker" in map(concept, known(module))}

    assert {"cli", "worker"} == users


def test_one_module_knows_grpc() -> None:
    """gRPC's statuses and failures stay in `temporal`; the command line may set a server up."""
    grpc = ("temporalio.service.RPC", "temporalio.api.errordetails", "grpc")
    users = {concept(module) for module in MODULES if any(name.startswith(grpc) for name in imports(FILES[module]))}

    assert "temporal" in users
    assert users <= {"temporal", "cli", "devserver"}


WATCH = """
import json, os, sys
class Watched(type(os.environ)):
    def _note(self, key):
        caller = sys._getframe(2).f_globals.get("__name__", "")
        if key in SETTINGS or str(key).startswith("TEMPORAL_") or caller.startswith("temporal_api"):
            read.append([caller, str(key)])
    def __getitem__(self, key): self._note(key); return super().__getitem__(key)
    def __contains__(self, key): self._note(key); return super().__contains__(key)
    def get(self, key, default=None): self._note(key); return super().get(key, default)
    def __iter__(self): self._note("*"); return super().__iter__()
read, (SETTINGS, modules) = [], json.loads(sys.argv[1])
os.environ.__class__ = Watched
os.environ.get("PORT"); assert read, "the watch itself works"
read.clear()
for module in modules: __import__(module)
print(json.dumps(read))
"""


def test_nothing_reads_the_environment_at_import() -> None:
    """Settings are read once, when a command runs: importing any module reads none of them."""
    names = [field.upper() for field in Settings.__struct_fields__]
    result = subprocess.run(
        [sys.executable, "-c", WATCH, json.dumps([names, MODULES])],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert [] == json.loads(result.stdout)


def test_the_map_names_every_module() -> None:
    """The package's docstring tells of each module in it."""
    names = {module.name for module in iter_modules(temporal_api.__path__)} - {"__main__"}

    assert [] == [name for name in sorted(names) if name not in str(temporal_api.__doc__)]


def test_the_top_level_shows_five_things() -> None:
    """The repository's first page: the service, its tests, how it is built, run and read about."""
    files = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True, cwd=ROOT).stdout  # noqa: S607
    shown = {file.split("/")[0] for file in files.splitlines()}

    assert {"temporal_api", "tests", "Containerfile", "compose.yaml", "pyproject.toml", "README.md"} == {
        name for name in shown if not name.startswith(".")
    }


def test_resources_is_the_one_place() -> None:
    """What is under /api/v1 is what RESOURCES holds, and every controller but health is in it."""
    found = set()
    for module in walk_packages(controllers.__path__, "temporal_api.controllers."):
        found |= {
            value
            for value in vars(import_module(module.name)).values()
            if isinstance(value, type) and issubclass(value, Controller) and value is not Controller
        }
    outside = {controller for controller in found if controller.path == "/health"}

    assert found - outside == set(app.RESOURCES)
    assert 1 == len(outside)
    served = app.create_app(from_env({"JWT_SECRET": SECRET}))
    handlers = {
        handler.fn.__qualname__.split(".")[0]
        for route in served.routes
        if isinstance(route, HTTPRoute) and route.path.startswith("/api/v1")
        for handler in route.route_handlers
        if handler.http_methods != {"OPTIONS"}
    }
    assert {controller.__name__ for controller in app.RESOURCES} == handlers


def test_a_resource_is_one_line_of_the_app() -> None:
    """Each controller is named in app.py where it is imported and in RESOURCES, and nowhere else."""
    text = (PACKAGE / "app.py").read_text()

    assert [] == [c.__name__ for c in app.RESOURCES if text.count(c.__name__) != 2]


class Refunds(Controller):
    """A resource as somebody adds it."""

    path = "/refunds"

    @get("/mine", scope="refunds:read", operation_id="getRefund", summary="A refund")
    async def read(self, user: CurrentUser) -> str:
        """Whose it is."""
        return user.sub

    @get("/forgotten", operation_id="getForgotten", summary="A handler that names no scope")
    async def forgotten(self) -> str:
        """Nobody may have it."""
        return "open"


@pytest.mark.anyio
async def test_an_added_resource_is_served_and_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A controller in RESOURCES is under /api/v1, needs a token and its scope, and is in the contract."""
    monkeypatch.setattr(app, "RESOURCES", [*app.RESOURCES, Refunds])
    async with service(TEMPORAL_ADDRESS="127.0.0.1:1") as client:
        path = "/api/v1/refunds/mine"
        assert_problem(await client.get(path, headers={"Authorization": ""}), 401, "missing_token")
        assert_problem(await client.get(path), 403, "insufficient_scope")
        mine = await client.get(path, headers=bearer("carol", "refunds:read"))
        assert (200, "carol") == (mine.status_code, mine.json())
        forgotten = await client.get("/api/v1/refunds/forgotten", headers=bearer(scope="refunds:read orders:admin"))
        assert_problem(forgotten, 403, "insufficient_scope")
