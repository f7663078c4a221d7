"""The runner, the gallery and the verb: what is written, what a failure leaves, and what is said of mistakes."""

import dataclasses
import json
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from metastep import experiments
from metastep._errors import DataError, InputError
from metastep._records import read_json, write_json
from metastep.cli import reproduce
from metastep.cli.main import main
from metastep.experiments import page, run_one, runner, spent
from metastep.experiments.core import VERDICTS, Claim, Experiment
from metastep.report import gallery, style


@dataclasses.dataclass(frozen=True)
class Config:
    points: int
    data: str | None = None


def _run(config, seed, report):
    report("drawing", 1, 2)
    x = jnp.arange(config.points) / 3
    return {
        "dtype": str(x.dtype),
        "seed": seed,
        "data": config.data,
        "curve": {"x": x, "y": x**2},
        "rows": [{"name": "a", "value": 1.5}, {"name": "b", "value": float("nan")}],
        "ragged": {"x": [1.0], "y": [1.0, 2.0]},
    }


def _plot(records):
    figure, (axes,) = style.new_figure()
    axes.plot(records["curve"]["x"], records["curve"]["y"])
    return figure


def _claims(records):
    last = records["curve"]["y"][-1]
    return [Claim("y < 1 & x <b>", "Figure 0", "the last y", "does not hold", f"y = {last:.3f}")]


TOY = Experiment("toy", "A toy", "zou2022", Config(4), Config(40), _run, _plot, _claims)


@pytest.fixture
def registry(monkeypatch):
    """Two experiments instead of the real ones, run in this process; the second fails."""

    def broken(config, seed, report):
        raise FloatingPointError("the loss exploded")

    toys = {"toy": TOY, "broken": dataclasses.replace(TOY, name="broken", run=broken)}
    monkeypatch.setattr(experiments, "names", lambda: tuple(toys))
    monkeypatch.setattr(experiments, "load", toys.__getitem__)
    here = lambda work, names, jobs, tell: ((name, work(name, tell(name))) for name in names)  # noqa: E731
    monkeypatch.setattr(runner, "side_by_side", here)
    return toys


@pytest.mark.parametrize(
    ("names", "apart"), [(["toy"], []), (["toy", "broken"], [("toy", "broken"), 1])]
)
def test_several_have_processes_and_memory_of_their_own_even_one_at_a_time(
    tmp_path, registry, monkeypatch, names, apart
):
    seen, here = [], runner.side_by_side

    def noted(work, names, jobs, tell):
        seen.extend((tuple(names), jobs))
        return here(work, names, jobs, tell)

    monkeypatch.setattr(runner, "side_by_side", noted)
    found = list(runner.run_experiments(names, tmp_path, jobs=1))
    assert [record["name"] for record in found] == names
    assert seen == apart


def verb(capsys, *arguments):
    status = 0
    try:
        main(["reproduce", "--jobs", "1", *map(str, arguments)])
    except SystemExit as exit_:
        status = exit_.code or 0
    return status, *capsys.readouterr()


def test_everything_is_written_and_listed(tmp_path):
    record = run_one.run_experiment(TOY, tmp_path, seed=7)
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("toy/*")}
    assert written == {*record["files"], "toy/result.json"}
    names = {"figure.png", "figure.svg", "records.json", "claims.json", "curve.csv", "rows.csv"}
    assert {name.removeprefix("toy/") for name in record["files"]} == names
    assert record["status"] == "finished"
    assert record["seconds"] > 0
    assert record["peak_memory_mb"] > 10
    records = read_json(tmp_path / "toy" / "records.json")
    assert records["config"] == {"points": 4, "data": None}
    assert records["seed"] == 7
    assert read_json(tmp_path / "toy" / "claims.json") == record["claims"]
    assert record["claims"][0]["evidence"] == "y = 1.000"
    assert (tmp_path / "toy" / "curve.csv").read_text().splitlines()[1:3] == [
        "0.0,0.0",
        f"{1 / 3},{(1 / 3) ** 2}",
    ]
    assert (tmp_path / "toy" / "rows.csv").read_text() == "name,value\na,1.5\nb,\n"


def test_scale_chooses_the_configuration(tmp_path):
    run_one.run_experiment(TOY, tmp_path, scale="paper")
    assert len(read_json(tmp_path / "toy" / "records.json")["curve"]["x"]) == 40


def test_reduced_is_the_paper_s_own_scale_where_nothing_is_reduced(tmp_path):
    record = run_one.run_experiment(TOY, tmp_path, scale="reduced")
    assert record["scale"] == "paper"
    assert "--scale paper" in record["command"]
    smaller = dataclasses.replace(TOY, reduced=Config(20))
    record = run_one.run_experiment(smaller, tmp_path, scale="reduced")
    assert record["scale"] == "reduced"
    assert len(read_json(tmp_path / "toy" / "records.json")["curve"]["x"]) == 20


_LITTLE = "jax_disable_most_optimizations"


@pytest.fixture
def fully_optimised():
    before = jax.config.read(_LITTLE)
    jax.config.update(_LITTLE, False)
    yield
    jax.config.update(_LITTLE, before)


@pytest.mark.parametrize(("scale", "little"), [("quick", True), ("paper", False)])
@pytest.mark.usefixtures("fully_optimised")
def test_quick_runs_compile_with_little_optimisation(tmp_path, scale, little):
    seen = []

    def run(config, seed, report):
        seen.append(jax.config.read(_LITTLE))
        raise FloatingPointError("leaves by an error")

    run_one.run_experiment(dataclasses.replace(TOY, run=run), tmp_path, scale=scale)
    assert seen == [little]
    assert not jax.config.read(_LITTLE)


@pytest.mark.parametrize(("float64", "dtype"), [(True, "float64"), (False, "float32")])
def test_precision_is_the_experiments_own(tmp_path, float64, dtype):
    run_one.run_experiment(dataclasses.replace(TOY, float64=float64), tmp_path)
    assert read_json(tmp_path / "toy" / "records.json")["dtype"] == dtype


def test_missing_data_is_not_a_failure(tmp_path):
    needy = dataclasses.replace(TOY, needs="omniglot")
    record = run_one.run_experiment(needy, tmp_path / "out", data=tmp_path)
    assert record["status"] == (
        f"not run: there is no folder omniglot in {tmp_path}; run `metastep data fetch omniglot` or "
        "give --data"
    )
    (tmp_path / "omniglot").mkdir()
    assert run_one.run_experiment(needy, tmp_path / "out", data=tmp_path)["status"] == "finished"
    records = read_json(tmp_path / "out" / "toy" / "records.json")
    assert records["data"] == str(tmp_path)
    assert records["config"]["data"] is None  # where the data lay is nobody else's concern


def test_files_of_an_earlier_run_do_not_pass_for_new_ones(tmp_path, registry):
    run_one.run_experiment(TOY, tmp_path)
    (tmp_path / "toy" / "notes.txt").write_text("mine")
    failing = dataclasses.replace(registry["broken"], name="toy")
    record = run_one.run_experiment(failing, tmp_path)
    assert {path.name for path in (tmp_path / "toy").iterdir()} == {
        "notes.txt",
        "result.json",
        "traceback.txt",
    }
    assert record["status"] == "failed: FloatingPointError: the loss exploded"


def _killed_after_half(keeper):
    """An experiment of two parts, each kept and put down in `keeper`; killed after the very first."""

    def run(config, seed, report):
        total, folder = 0.0, report.keep("parts")
        for part in range(2):
            report("adding", part, 2)
            file = folder / f"{part}.json"
            if not file.exists():
                folder.mkdir(parents=True, exist_ok=True)
                write_json(file, {"value": config.points + part})
                keeper.append(part)
                if len(keeper) == 1:
                    raise KeyboardInterrupt
            total += read_json(file)["value"]
        return {"curve": {"x": [0.0], "y": [total]}}

    return dataclasses.replace(TOY, run=run)


def test_a_killed_run_goes_on_with_what_it_kept_and_counts_what_it_spent(tmp_path, monkeypatch):
    monkeypatch.setattr(spent, "_SECONDS_BETWEEN_NOTES", 0.0)
    computed = []
    experiment = _killed_after_half(computed)
    with pytest.raises(KeyboardInterrupt):
        run_one.run_experiment(experiment, tmp_path, seed=3)
    file = tmp_path / "toy" / "unfinished" / "spent.json"
    write_json(file, read_json(file) | {"cpu_seconds": 1000.0, "peak_memory_mb": 1e9})
    record = run_one.run_experiment(experiment, tmp_path, seed=3)
    assert computed == [0, 1]
    assert read_json(tmp_path / "toy" / "records.json")["curve"]["y"] == [9.0]
    assert record["cpu_seconds"] > 1000
    assert record["peak_memory_mb"] == 1e9
    assert not (tmp_path / "toy" / "unfinished").exists()


@pytest.mark.parametrize("other", [{"seed": 4}, {"seed": 3, "scale": "paper"}])
def test_what_another_run_kept_is_not_gone_on_with(tmp_path, other):
    computed = []
    experiment = _killed_after_half(computed)
    with pytest.raises(KeyboardInterrupt):
        run_one.run_experiment(experiment, tmp_path, seed=3)
    run_one.run_experiment(experiment, tmp_path, **other)
    assert computed == [0, 0, 1]


def test_a_claim_has_one_of_the_four_verdicts():
    with pytest.raises(InputError, match="verdict is 'maybe'; choose one of: does not hold, holds"):
        Claim("a", "b", "c", "maybe", "d")  # pyright: ignore[reportArgumentType]
    assert VERDICTS == gallery.VERDICTS


def test_one_failure_does_not_end_the_others(capsys, tmp_path, registry):
    status, out, err = verb(capsys, "broken", "toy", "--out", tmp_path, "--json")
    records = json.loads(out)
    assert status == 1
    assert list(records) == ["broken", "toy"]
    assert records["toy"]["status"] == "finished"
    assert "the loss exploded" in (tmp_path / "broken" / "traceback.txt").read_text()
    assert "failed: broken; see their traceback.txt" in err
    assert re.search(r"toy +finished +\d+\.\d s +\d+ MB +1 does not hold", err)


@pytest.mark.parametrize(
    ("given", "scale", "jobs"), [(None, "quick", 3), (None, "paper", 1), (2, "paper", 2)]
)
def test_only_quick_ones_run_side_by_side_unasked(monkeypatch, given, scale, jobs):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 4, 5}, raising=False)
    assert reproduce._jobs(reproduce.ReproduceOptions(jobs=given, scale=scale)) == jobs


def test_all_means_each_once(registry):
    assert runner.resolve(["toy", "all", "toy"]) == ["toy", "broken"]
    assert runner.resolve(["toy", "toy"]) == ["toy"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["zou-fig99"], "there is no experiment 'zou-fig99'; choose from: all, toy, broken"),
        ([], "no experiment was named; choose from: all, toy, broken"),
        (["toy", "--seed", "-1"], "seed is -1; it must be a whole number of at least 0"),
        (["toy", "--jobs", "0"], "jobs is 0; it must be a whole number of at least 1"),
    ],
)
def test_mistakes_are_one_line_and_status_2(capsys, tmp_path, registry, arguments, message):
    status, out, err = verb(capsys, *arguments, "--out", tmp_path / "new")
    assert (status, out) == (2, "")
    assert message in err
    assert not (tmp_path / "new").exists()


def test_a_folder_that_cannot_be_written_to_is_refused_first(capsys, tmp_path, registry):
    (tmp_path / "file").write_text("")
    status, _, err = verb(capsys, "toy", "--out", tmp_path / "file")
    assert status == 2
    assert f"--out {tmp_path / 'file'} cannot be written to (File exists)" in err


def test_gallery_needs_no_other_file_and_escapes(tmp_path, capsys, registry):
    verb(capsys, "toy", "broken", "--out", tmp_path)
    page = (tmp_path / "gallery.html").read_text()
    assert page.count('src="data:image/svg+xml;base64,') == 1
    assert not re.search(r'(src|href)="(https?:|//)', page)
    assert "y &lt; 1 &amp; x &lt;b&gt;" in page
    assert "does not hold" in page
    assert "failed: FloatingPointError: the loss exploded" in page
    assert "metastep reproduce toy --scale quick --seed 0 --out" in page


def test_gallery_of_nothing_and_of_damage(tmp_path):
    with pytest.raises(DataError, match="holds no reproduced experiment; run `metastep reproduce"):
        gallery.write_gallery(tmp_path)
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "result.json").write_text("{")
    with pytest.raises(DataError, match=r"result.json is damaged .*; delete it or run"):
        gallery.write_gallery(tmp_path)


def test_results_are_ordered_as_people_count(tmp_path):
    for name in ("zou-fig10", "zou-fig2", "takagi"):
        result = {"name": name, "status": "finished", "claims": [], "files": []}
        write_json(tmp_path / name / "result.json", result)
    names = [result["name"] for result in gallery.read_results(tmp_path)]
    assert names == ["takagi", "zou-fig2", "zou-fig10"]


def test_list_does_not_import_jax():
    # The promise is about imports, so a fresh interpreter is needed.
    check = (
        "import sys; from metastep.cli import main; main(['reproduce', '--list', '--json']); "
        "print('jax' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, check=True
    )
    listed, imported = result.stdout.strip().splitlines()
    assert imported == "False"
    assert [one["name"] for one in json.loads(listed)] == list(experiments.names())


def test_the_list_says_what_the_experiments_say():
    for summary in experiments.summaries():
        experiment = experiments.load(summary.name)
        for field in dataclasses.fields(summary):
            assert getattr(summary, field.name) == getattr(experiment, field.name)


def _result(name: str, verdict: str, **more):
    claim = {"text": "a | b_c", "source": "Fig. 0", "verdict": verdict, "evidence": "x < 1"}
    return {
        "name": name, "title": "A toy", "scale": "quick", "cpu_seconds": 2.4, "peak_memory_mb": None,
        "status": "finished", "files": [], "claims": [claim], **more,
    }  # fmt: skip


def _page(tmp_path, *results) -> str:
    """The page made of results, each in a folder of its own."""
    for index, result in enumerate(results):
        write_json(tmp_path / str(index) / result["name"] / "result.json", result)
    folders = [tmp_path / str(index) for index in range(len(results))]
    return page.write(folders, tmp_path / "docs")[-1].read_text()


def test_page_of_verdicts(tmp_path):
    missing = _result("b", "holds", status="not run: no data", claims=[])
    text = _page(tmp_path, missing, _result("toy", "holds"), _result("toy", "does not hold"))
    assert "Claims: 1 does not hold;" in text
    assert "All of `quick` took 5 processor seconds." in text
    assert "| [toy](#toy) | A toy |  |  | 1 |  | 2 |  |  |  |" in text
    assert r"| a \| b\_c (Fig. 0) | **does not hold** | x \< 1 |" in text
    assert "## b\n\nA toy; scale `quick`. The scale of the paper was not run.\n\nNot run.\n" in text


def test_page_shows_the_scale_of_the_paper_and_what_differs_from_it(tmp_path):
    paper = {"scale": "paper", "cpu_seconds": 70.0, "peak_memory_mb": 900.0}
    text = _page(
        tmp_path, _result("toy", "holds", **paper), _result("toy", "not tested"),
        _result("same", "holds"), _result("same", "holds", **paper),
        _result("broken", "holds"), _result("broken", "holds", status="failed: x", claims=[], **paper),
    )  # fmt: skip
    assert "| [toy](#toy) | A toy | 1 |  |  |  | 2 |  | 70 | 900 |" in text
    assert "## toy\n\nA toy; scale `paper`.\n" in text
    assert text.count("Other verdicts at the scale `quick`:") == 1
    assert "- a \\| b\\_c: **not tested**, x \\< 1\n" in text
    assert "## broken\n\nA toy; scale `quick`.\n" in text


def test_page_says_what_was_too_long_to_run(tmp_path, monkeypatch):
    costly = experiments.Summary("toy", "A toy", "zou2022", cost="9 hours at 1 s per meta-step")
    monkeypatch.setattr(page, "summaries", lambda: (costly,))
    said = "The scale of the paper was not run: it takes 9 hours at 1 s per meta-step."
    assert said in _page(tmp_path, _result("toy", "holds"))
    assert said not in _page(
        tmp_path, _result("toy", "holds"), _result("toy", "holds", scale="paper")
    )


def test_a_reduced_run_is_shown_with_its_cost_and_beside_the_quick_one(tmp_path):
    quick, reduced = (
        _result("toy", "not tested"),
        _result("toy", "holds", scale="reduced", cpu_seconds=4321),
    )
    text = _page(tmp_path, quick, reduced)
    assert "scale `reduced`. 4,321 processor seconds. The scale of the paper was not run" in text
    assert "Claims: 1 holds;" in text
    assert "- a \\| b\\_c: **not tested**" in text
    assert "| [toy](#toy) | A toy | 1 |  |  |  | 2 |  |  |  |" in text


def test_the_page_keeps_what_no_folder_holds(tmp_path):
    _page(
        tmp_path, _result("long-10", "holds", scale="paper", cpu_seconds=9e4),
        _result("long-9", "holds"),
        _result("long-10", "not tested"),
    )  # fmt: skip
    text = _page(tmp_path, _result("long-9", "does not hold"))
    assert "Claims: 1 holds, 1 does not hold;" in text
    assert "| [long-10](#long-10) | A toy | 1 |  |  |  | 2 |  | 90000 |  |" in text
    assert "- a \\| b\\_c: **not tested**" in text
    assert text.index("## long-9") < text.index("## long-10")


def test_pictures_of_the_page_are_small(tmp_path):
    run_one.run_experiment(TOY, tmp_path / "run")
    picture, _, text = page.write([tmp_path / "run"], tmp_path / "docs")
    assert picture == tmp_path / "docs" / "figures" / "reproduce" / "toy.png"
    assert picture.stat().st_size < 50_000
    assert "![A toy](figures/reproduce/toy.png)" in text.read_text()


def test_help_has_an_example(capsys):
    status, out, _ = verb(capsys, "--help")
    assert status == 0
    example = re.search(r"Example: metastep reproduce (.*) --out", out)
    assert example
    assert set(example[1].split()) <= set(experiments.names())
