"""The command line as a user meets it: results on stdout, one clear line for every mistake, exit status 2."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from metastep.cli import verbs
from metastep.cli.main import main
from metastep.cli.predictions import write_predictions
from metastep.train import TaskConfig, load_tasks

QUICK = ["--iterations", "20", "--hidden", "8", "--tasks-per-step", "3", "--eval-tasks", "4"]


def run(capsys, *arguments):
    """Exit status, stdout and stderr of a verb."""
    status = 0
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as exit_:
        status = exit_.code or 0
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def sensors(path, tasks=12, rows=20, header="task,t,h,y", level=0):
    rng = np.random.default_rng(0)
    lines = [header]
    for task in range(tasks):
        gain, offset = rng.uniform(0.5, 2), rng.normal()
        for t, h in rng.normal(size=(rows, 2)):
            lines.append(f"s{task},{level + t:.5f},{h:.5f},{offset + gain * np.sin(t) + h:.5f}")
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def table_run(tmp_path_factory):
    """A run on a table, trained once for all tests of this file that only read it."""
    folder = tmp_path_factory.mktemp("table")
    table = sensors(folder / "sensors.csv")
    main(["train", str(table), "--out", str(folder / "run"), *QUICK, "--json"])
    return folder


def test_every_verb_keeps_freed_memory(monkeypatch, capsys, tmp_path):
    calls = []
    monkeypatch.setattr("metastep.cli.process.keep_freed_memory", lambda: calls.append(1))
    run(capsys, "data", "info", sensors(tmp_path / "sensors.csv"))
    assert len(calls) == 1
    run(capsys, "reproduce", "no-such-figure", "--out", tmp_path / "figures")
    assert len(calls) == 2


def test_help_starts_without_jax():
    # The promise is about imports, so a fresh interpreter is needed.
    check = (
        "import sys; from metastep.cli import main; main(['--help']); print('jax' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip().endswith("False")
    assert "metastep train sinusoid --out RUN" in result.stdout


def test_training_on_drawn_tasks_loads_no_readers_and_no_drawing():
    # Together they take as long to import as half of JAX does.
    code = (
        "import sys, metastep.cli.verbs; print(*sorted({m.partition('.')[0] for m in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert {"jax", "metastep", "tyro"} <= loaded
    assert not loaded & {"orbax", "pyarrow", "PIL", "matplotlib", "joblib", "pandas"}


@pytest.mark.parametrize("verb", ["rates", "train", "evaluate", "adapt", "data fetch", "data info"])
def test_every_verb_explains_itself_with_an_example(capsys, verb):
    status, out, _ = run(capsys, *verb.split(), "--help")
    assert status == 0
    assert f"Example: metastep {verb}" in out
    assert "--json" in out
    assert "--seed" in out


def test_columns_that_are_not_used_are_named(capsys, tmp_path):
    table = tmp_path / "days.csv"
    lines = [f"s{i % 4},2024-01-{i % 28 + 1:02d},good,{i},{i / 7}" for i in range(80)]
    table.write_text("\n".join(["task,day,note,t,y", *lines]) + "\n")
    _, out, _ = run(capsys, "data", "info", table, "--json")
    assert json.loads(out)["left_out"] == ["day", "note"]
    described = load_tasks(TaskConfig(tasks=str(table))).description
    assert verbs._tasks_lines(described).endswith("no numbers or not asked for: day, note")
    assert "left out" not in verbs._tasks_lines(described | {"left_out": []})


def test_rates_json(capsys):
    status, out, _ = run(
        capsys, "rates", "sinusoid", "--hidden", "8", "--num-tasks", "16", "--json"
    )
    record = json.loads(out)
    assert status == 0
    low, high = record["alpha_interval"]
    assert 0 < low <= record["alpha"] <= high
    assert record["label_free_alpha"] > 0
    assert record["alpha_chosen"] == max(record["alpha"], record["support_alpha"])
    assert 0 < record["predicted_gain"] < 1
    assert len(record["curve"]["alpha"]) == len(record["curve"]["measured"])


def test_rates_rehearses_as_train_does(capsys, tmp_path):
    few = ["--hidden", "8", "--iterations", "2000", "--json"]
    status, out, err = run(capsys, "rates", "sinusoid", "--rehearse", *few)
    asked = json.loads(out)
    assert status == 0
    tried = [row["alpha"] for row in asked["rehearsals"]]
    assert len(tried) >= 2
    assert asked["alpha_chosen"] in tried
    assert "short training 2 of at most 4, 20 meta-steps at alpha" in err
    _, out, _ = run(
        capsys, "train", "sinusoid", *few, "--eval-tasks", "4", "--out", tmp_path / "run"
    )
    trained = json.loads(out)
    assert trained["alpha"] == pytest.approx(asked["alpha_chosen"], rel=1e-12)
    assert trained["meta_lr"] == pytest.approx(asked["meta_lr"], rel=1e-12)
    assert "in a run of 2,000 meta-steps" in asked["meta_lr_reason"]


def test_rates_of_a_run_of_no_length(capsys):
    status, _, err = run(capsys, "rates", "sinusoid", "--iterations", "0")
    assert status == 2
    assert "--iterations is 0" in err


def test_tasks_and_model_of_the_users_own(capsys, tmp_path):
    examples = Path(__file__).parents[2] / "examples"
    own = [f"{examples}/own_tasks.py:Springs", "--model", f"{examples}/own_model.py:waves"]
    status, out, err = run(capsys, "train", *own, *QUICK, "--out", tmp_path / "run", "--json")
    assert status == 0, err
    status, out, err = run(capsys, "evaluate", tmp_path / "run", "--num-tasks", "20", "--json")
    assert status == 0, err
    assert json.loads(out)["loss"]["mean"] > 0
    status, _, err = run(capsys, "data", "info", "no_such_file.py:Springs")
    assert status == 2
    assert err.count("\n") == 1
    assert "no_such_file.py does not exist" in err


def test_rates_map_writes_its_files_and_says_where(capsys, tmp_path):
    status, out, err = run(
        capsys, "rates", "sinusoid", "--hidden", "4", "--num-tasks", "16", "--map",
        "--map-iterations", "3", "--out", tmp_path / "maps", "--json",
    )  # fmt: skip
    record = json.loads(out)
    assert status == 0, err
    assert record["alpha_max"] > 0
    assert record["beta_max"] > 0
    assert "2 / λ_max" in record["alpha_max_reason"]
    assert "SGD" in record["beta_max_reason"]
    files = sorted(path.name for path in (tmp_path / "maps").iterdir())
    assert files == ["rates_map.json", "rates_map.png", "rates_map.svg"]
    assert {path.rsplit("/", 1)[-1] for path in record["map"]["files"]} == set(files)
    kept = json.loads((tmp_path / "maps" / "rates_map.json").read_text())
    assert kept["chosen"]["alpha"] == record["alpha_chosen"]
    assert np.shape(kept["train_loss"]) == (9, 7)
    status, _, err = run(capsys, "rates", "sinusoid", "--map", "--map-iterations", "0")
    assert status == 2
    assert "--map-iterations is 0" in err


def test_train_evaluate_adapt_on_a_table(capsys, table_run, tmp_path):
    status, out, _ = run(capsys, "evaluate", table_run / "run", "--num-tasks", "40", "--json")
    record = json.loads(out)
    assert status == 0
    assert record["num_tasks"] == 40
    assert set(record["loss"]) == {"mean", "ci95"} == set(record["before"]["loss"])
    one = sensors(tmp_path / "one.csv", tasks=1)
    lines = one.read_text().splitlines()
    (tmp_path / "a.csv").write_text("\n".join(lines[:11]) + "\n")
    (tmp_path / "b.csv").write_text("\n".join([lines[0], *lines[11:]]) + "\n")
    for ending in ("npz", "csv", "parquet"):
        target = tmp_path / f"p.{ending}"
        status, out, err = run(
            capsys, "adapt", table_run / "run", "--support", tmp_path / "a.csv",
            "--query", tmp_path / "b.csv", "--out", target, "--json",
        )  # fmt: skip
        assert status == 0, err
        assert target.exists()
        scored = json.loads(out)
        assert scored["query"] == 10
        assert scored["mean_squared_error"] > 0
    predicted = np.load(tmp_path / "p.npz")
    truth = np.array([float(line.split(",")[-1]) for line in lines[11:]])
    error = np.mean((predicted["predictions"][:, 0] - truth) ** 2)
    assert error == pytest.approx(scored["mean_squared_error"], rel=1e-3)
    report = (table_run / "run" / "report.html").read_text()
    assert "http://" not in report.replace("http://www.w3.org", "")


def test_adapt_says_when_the_rate_was_too_high_for_a_task(capsys, table_run, tmp_path):
    one = sensors(tmp_path / "one.csv", tasks=1)
    ask = ["adapt", table_run / "run", "--query", one, "--out", tmp_path / "p.npz", "--json"]
    status, out, err = run(capsys, *ask, "--support", one)
    assert (status, json.loads(out)["halvings"]) == (0, 0)
    assert "lowered" not in err
    status, out, err = run(capsys, *ask, "--support", one, "--alpha", "30")
    record = json.loads(out)
    assert (status, record["unadapted"]) == (0, False)
    assert f"(halvings of inner steps: {record['halvings']})" in " ".join(err.split())
    assert record["mean_squared_error"] < 1e3
    status, out, err = run(capsys, *ask, "--support", one, "--alpha", "1e9")
    record = json.loads(out)
    assert record["unadapted"]
    assert record["mean_squared_error"] == record["mean_squared_error_before"]
    assert "the predictions are those before adaptation" in " ".join(err.split())
    status, _, err = run(capsys, *ask, "--support", one, "--halvings", "-1")
    assert status == 2
    assert "--halvings is -1" in err


def test_evaluate_counts_tasks_at_lower_rates(capsys, table_run):
    ask = ["evaluate", table_run / "run", "--num-tasks", "12", "--alpha", "30"]
    status, out, _ = run(capsys, *ask)
    assert status == 0
    assert "tasks adapted at a lower rate" in " ".join(out.split())
    _, out, _ = run(capsys, *ask, "--json")
    mended = json.loads(out)
    assert mended["halved"] == 12
    _, out, _ = run(capsys, *ask, "--halvings", "0", "--json")
    plain = json.loads(out)
    assert plain["halved"] == 0
    assert not (plain["loss"]["mean"] or float("inf")) <= mended["loss"]["mean"]


def test_predictions_come_back_in_the_units_of_the_table(capsys, tmp_path):
    # y is offset by 1,000 and the columns have wild scales: standardised inside, not outside.
    rng = np.random.default_rng(1)
    x = rng.normal(size=(240, 2)) * [1e-3, 1e4]
    task = np.repeat(np.arange(12), 20)
    y = 1000 + 5 * np.sin(x[:, 0] * 1e3) + task
    np.savez(tmp_path / "t.npz", x=x, y=y, task=task)
    run(capsys, "train", tmp_path / "t.npz", "--out", tmp_path / "run", *QUICK)
    np.savez(tmp_path / "a.npz", x=x[:10], y=y[:10])
    np.savez(tmp_path / "b.npz", x=x[10:20])
    out = tmp_path / "p.npz"
    status, _, err = run(
        capsys, "adapt", tmp_path / "run", "--support", tmp_path / "a.npz",
        "--query", tmp_path / "b.npz", "--out", out,
    )  # fmt: skip
    assert status == 0, err
    assert abs(np.load(out)["predictions"].mean() - 1000) < 30


def test_a_run_on_numbers_in_units_of_their_own_says_so(capsys, tmp_path):
    table = sensors(tmp_path / "raw.csv", level=1013)
    arguments = ["train", table, "--out", tmp_path / "run", *QUICK]
    _, _, err = run(capsys, *arguments, "--no-standardise")
    assert "warning: inputs have " in " ".join(err.split())
    _, _, err = run(capsys, *arguments, "--overwrite")
    assert "warning" not in err


def mistakes(folder):
    """name -> (arguments, what the line must say)."""
    good = sensors(folder / "good.csv")
    bad = {
        "nan.csv": good.read_text() + "s1,nan,2.0,3.0\n",
        "one_row.csv": good.read_text() + "lonely,1,2,3\n",
        "empty.csv": "",
        "header_only.csv": "task,t,h,y\n",
        "mixed.csv": good.read_text() + "s1,1.0,2.0,warm\n",
    }
    for name, text in bad.items():
        (folder / name).write_text(text)
    (folder / "corrupt.zip").write_bytes(b"PK\x03\x04 this is not a zip")
    with zipfile.ZipFile(folder / "escape.zip", "w") as archive:
        archive.writestr("../outside/a.png", b"x")
    with zipfile.ZipFile(folder / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("a/a.png", "b/b.png"):
            archive.writestr(name, b"\0" * 300_000_000)
    np.savez(folder / "keys.npz", inputs=np.zeros(3))
    np.savez(folder / "pickle.npz", x=np.array([{}], dtype=object), y=np.zeros(1), task=np.zeros(1))
    (folder / "images").mkdir()
    return {
        "no such file": (["rates", folder / "none.csv"], "neither a known name"),
        "nan": (["rates", folder / "nan.csv"], "column 't' is nan in row 241"),
        "one-row task": (["rates", folder / "one_row.csv"], "'lonely', has 1: lower --shots"),
        "empty": (["rates", folder / "empty.csv"], "empty"),
        "header only": (["rates", folder / "header_only.csv"], "holds no rows"),
        "mixed": (["rates", folder / "mixed.csv"], "column 'y' mixes numbers and text"),
        "unknown column": (["rates", good, "--task-column", "machine"], "machine"),
        "too many shots": (["rates", good, "--shots", "30"], "fewer than 60 rows"),
        "corrupt zip": (["rates", folder / "corrupt.zip"], "is not a readable zip archive"),
        "path escape": (["rates", folder / "escape.zip"], "outside"),
        "bomb": (["rates", folder / "bomb.zip"], "taken for a decompression bomb"),
        "wrong keys": (["rates", folder / "keys.npz"], "lacks the array(s) x, y, task"),
        "pickle": (["rates", folder / "pickle.npz"], "pickle"),
        "empty folder": (["rates", folder / "images"], "images"),
        "alpha 0": (["train", "sinusoid", "--out", folder / "r", "--alpha", "0"], "--alpha is 0"),
        "alpha nan": (["train", "sinusoid", "--out", folder / "r", "--alpha", "nan"], "--alpha is nan"),
        "not a run": (["evaluate", folder / "images"], "is not the folder of a run"),
        "resume nothing": (["train", "--resume", "--out", folder / "r"], "is not the folder of a run"),
        "no tasks": (["train", "--out", folder / "r"], "needs TASKS"),
        "divergence": (
            ["train", "sinusoid", "--out", folder / "d", "--alpha", "1e30", *QUICK],
            "the inner loop left the finite numbers",
        ),
        "unknown verb": (["trian"], "there is no verb 'trian'"),
        "unknown data verb": (["data", "get"], "there is no 'data get'"),
    }  # fmt: skip


def test_every_mistake_is_one_line_and_status_2(capsys, tmp_path):
    for name, (arguments, words) in mistakes(tmp_path).items():
        status, out, err = run(capsys, *arguments)
        complaint = [line for line in err.splitlines() if line.startswith("metastep: ")]
        assert status == 2, (name, err)
        assert len(complaint) == 1, (name, err)
        assert words in complaint[0], (name, complaint)
        assert "Traceback" not in err, name
        assert out == "", name
    assert not (tmp_path / "r").exists()
    assert not (tmp_path.parent / "outside").exists()


def test_tensorboard_gets_the_metrics(capsys, tmp_path):
    # The event files are in the run's own folder, and neither they nor a resume stand in its way.
    folder = tmp_path / "run"
    start = ["train", "sinusoid", "--alpha", "0.01", "--tensorboard", "--out", folder, *QUICK]
    assert run(capsys, *start)[0] == 0
    assert run(capsys, "train", "--resume", "--out", folder, "--iterations", "25")[0] == 0
    assert run(capsys, *start, "--overwrite")[0] == 0
    events = list((folder / "tensorboard").glob("events*"))
    assert len(events) == 1
    assert b"validation/loss" in events[0].read_bytes()


def test_usage_errors_are_status_2(capsys):
    for arguments in (
        ["train", "sinusoid", "--alhpa", "1"],
        ["rates"],
        ["rates", "sinusoid", "--seed", "x"],
    ):
        status, _, _ = run(capsys, *arguments)
        assert status == 2, arguments


def test_adapt_refuses_what_the_model_was_not_trained_on(capsys, table_run, tmp_path):
    wrong = tmp_path / "wrong.csv"
    wrong.write_text("t,y\n1,2\n")
    np.savez(tmp_path / "wide.npz", x=np.zeros((3, 5)), y=np.zeros(3))
    good = ["--query", table_run / "sensors.csv"]
    for support, words in (
        (wrong, "h"),
        (tmp_path / "wide.npz", "shape"),
        (tmp_path / "no.csv", "no.csv"),
    ):
        status, _, err = run(capsys, "adapt", table_run / "run", "--support", support, *good)
        assert status == 2
        assert words in err


def test_predictions_name_labels_and_outputs(tmp_path):
    description = {"labels": ["cold", "warm"], "y_names": ["state"]}
    arrays = {
        "predictions": np.array([1, 0]),
        "predictions_before": np.array([0, 0]),
        "probabilities": np.array([[0.2, 0.8], [0.9, 0.1]]),
    }
    write_predictions(tmp_path / "p.csv", arrays, description)
    text = (tmp_path / "p.csv").read_text().replace('"', "")
    assert text.splitlines()[0] == "prediction,prediction_before,probability_cold,probability_warm"
    assert text.splitlines()[1].startswith("warm,cold,0.2,0.8")
    with pytest.raises(ValueError, match=r"p.txt: predictions are written as .npz, .csv, .parquet"):
        write_predictions(tmp_path / "p.txt", arrays, description)
