import base64
import io
import json
import os
import signal
from types import SimpleNamespace

import mlflow
import nbformat
import numpy as np
import pytest
from mlflow import MlflowClient
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from hvs_lib import runner
from hvs_lib.project import EXECUTION, environment
from hvs_lib.runner import RunError, plan
from hvs_lib.tracking.runs import tags_of
from hvs_lib.tracking.store import make_experiments, search_runs


@pytest.fixture
def tiny(project, monkeypatch):
    """Make a workbook of one small notebook, and return a function that executes it."""
    folder = project / "notebooks"
    folder.mkdir()
    monkeypatch.setattr(runner, "NOTEBOOKS", folder)

    def execute(*sources, imports="import os", parameters=None):
        cells = [new_code_cell("word = 'a'  # any", metadata={"tags": ["parameters"]})]
        cells += [new_code_cell(imports, metadata={"tags": ["imports"]})]
        cells += [new_code_cell(source) for source in sources]
        spec = {"name": "python3", "display_name": "Python 3", "language": "python"}
        notebook = new_notebook(cells=cells, metadata={"kernelspec": spec})
        nbformat.write(notebook, folder / "05_tiny.ipynb")
        said = []
        return runner.execute(plan([], parameters=parameters), say=said.append), said

    return execute


@pytest.fixture
def run(store, monkeypatch):
    """Start a run in the name of the kernel, which spares it loading MLflow."""
    execution = SimpleNamespace(hex="e" * 32)
    monkeypatch.setattr(runner, "uuid", SimpleNamespace(uuid4=lambda: execution))
    with environment({EXECUTION: execution.hex}):
        tags = tags_of("05_tiny")
    make_experiments()
    experiment = mlflow.get_experiment_by_name("HVS_Fire_Prediction_Data")
    return MlflowClient().create_run(experiment.experiment_id, tags=tags).info.run_id


def test_all_notebooks_in_order():
    assert list(plan([])) == [
        "00_data", "01_baseline", "02_tuning", "03_smote", "04_comparison", "05_field_trial",
    ]  # fmt: skip
    assert list(plan(["04_comparison", "01_baseline"])) == ["01_baseline", "04_comparison"]


def test_each_notebook_gets_the_parameters_that_it_has():
    planned = plan([], profile="smoke", parameters={"n_iter": "7", "seed": 3})
    assert planned["02_tuning"]["n_iter"] == 7
    assert "n_iter" not in planned["01_baseline"]
    assert planned["01_baseline"]["sites"] == 2
    trial = planned.pop("05_field_trial")
    assert trial == {"trial_sites": 2}, "its telemetry is not that of the training"
    assert {parameters["seed"] for parameters in planned.values()} == {3}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"names": ["02_tunning"]}, "no notebook '02_tunning'. Did you mean '02_tuning'?"),
        ({"parameters": {"n_itter": 5}}, "no parameter 'n_itter'. Did you mean 'n_iter'?"),
        (
            {"parameters": {"max_false_alarms_per_site_day": 1.0}},
            "no parameter 'max_false_alarms_per_site_day'. Did you mean "
            "'max_nuisance_alarms_per_site_day'?",
        ),
        ({"profile": "smok"}, "no profile 'smok'. Did you mean 'smoke'?"),
        ({"parameters": {"n_iter": "many"}}, "'n_iter' must be int, as its default 20 is, got"),
        ({"parameters": {"n_iter": "2.5"}}, "'n_iter' must be int"),
        ({"parameters": {"n_iter": "true"}}, "'n_iter' must be int"),
        ({"parameters": {"test_size": "a: b: c"}}, "'test_size' must be float"),
        ({"parameters": {"test_size": 10**400}}, "'test_size' must be float"),
        ({"parameters": {"n_iter": "2025-13-45"}}, "'n_iter' must be int"),
        ({"parameters": {"n_iter": "1:30"}}, "'n_iter' must be int"),
        ({"parameters": {"n_iter": "9" * 5000}}, "'n_iter' must be int"),
        ({"parameters": {"n_iter": "[" * 5000}}, "'n_iter' must be int"),
        ({"names": ["00_data"], "parameters": {"n_iter": 5}}, "00_data has no parameter 'n_iter'"),
        ({"names": ["05_field_trial"], "parameters": {"n_jobs": 0}}, "n_jobs must be 1 or more"),
        *(
            ({"parameters": {name: value}}, message)
            for name, value, message in [
                ("sites", 0, "sites must be at least 1, got 0"),
                ("sites", "1e6", "'sites' must be int"),
                ("trial_sites", 0, "in the field trial, sites must be at least 1, got 0"),
                ("battery", "packs", "pack, mix, got 'packs': did you mean 'pack'?"),
                ("trial_battery", "packs", "in the field trial, battery must be one of"),
                ("seed", -1, "seed must lie between 0 and 4294967295, got -1"),
                ("seed", 2**32, "seed must lie between"),
                ("test_size", 1.0, "test_size must be between 0 and 1, got 1.0"),
                ("test_size", "nan", "test_size must be between 0 and 1, got nan"),
                ("n_folds", 1, "n_folds must be a whole number from 2 to 100, got 1"),
                ("split", "rows", "split must be one of auto, site, rack, row, got 'rows'"),
                ("normal_stride", 0, "normal_stride must be at least 1, got 0"),
                (
                    "max_nuisance_alarms_per_site_day",
                    0.0,
                    "max_nuisance_alarms_per_site_day must be",
                ),
                ("max_nuisance_alarms_per_site_day", "nan", "must be above 0, got nan"),
                ("missed_event_costs", -1.0, "must be finite, 0 or more, got -1.0"),
                ("n_jobs", 0, "n_jobs must be 1 or more, or -1"),
                ("n_iter", 0, "n_iter must be at least 1, got 0"),
                (
                    "scoring",
                    "f2",
                    "scoring must be one of f1_class1, pr_auc, event_recall_5min, got 'f2'",
                ),
                ("smote_k_neighbors", 0, "smote_k_neighbors must be at least 1, got 0"),
                ("sampling_strategy", 1.5, "sampling_strategy must be above 0 and at most 1"),
                ("slow_samplers", "maybe", "'slow_samplers' must be bool"),
                ("policy", "best", "policy must be one of"),
                ("min_precision", 2.0, "min_precision must be between 0 and 1, got 2.0"),
            ]
        ),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(RunError) as refused:
        plan(**({"names": []} | arguments))
    assert message in str(refused.value)


def test_values_mean_what_they_look_like():
    text = {"seed": "017", "slow_samplers": "True", "n_folds": " 4"}
    assert plan(["03_smote"], parameters=text) == {
        "03_smote": {"seed": 17, "slow_samplers": True, "n_folds": 4}
    }


def test_whole_number_is_a_fraction_too():
    assert plan(["01_baseline"], parameters={"missed_event_costs": "1"}) == {
        "01_baseline": {"missed_event_costs": 1.0}
    }


@pytest.mark.slow
def test_executed_notebook_is_kept_and_logged_with_its_run(tiny, project, foreign_kernel):
    imports = "import mlflow\nfrom hvs_lib.progress import steps\n"
    imports += "from hvs_lib.tracking.runs import prepare, tags_of"
    start = (
        "prepare()\n"
        "mlflow.set_experiment('HVS_Fire_Prediction_Data')\n"
        "mlflow.start_run(run_name='05_tiny', tags=tags_of('05_tiny'))\n"
        "mlflow.log_params({'word': word})"
    )
    cells = start, "list(steps('ab', 'models'))", "mlflow.end_run()"
    seconds, said = tiny(*cells, imports=imports, parameters={"word": "b"})

    (executed,) = project.glob("runs/*/05_tiny.ipynb")
    (parent,) = search_runs("tags.role = 'parent'")
    assert parent.info.status == "FINISHED"
    assert parent.data.params == {"word": "b"}
    artifacts = MlflowClient().list_artifacts(parent.info.run_id)
    assert [artifact.path for artifact in artifacts] == [executed.name]

    assert said[2] == "  2 of 2 models, 0 s left"
    (log,) = project.glob("runs/*/run.log")
    assert [line[len("2026-01-01 00:00:00 ") :] for line in log.read_text().splitlines()] == said

    parts = seconds.loc["05_tiny", ["startup", "imports", "work"]]
    assert parts.min() >= 0
    assert parts.sum() == pytest.approx(seconds.loc["05_tiny", "total"])
    assert "share" in runner.timing_report(seconds)


@pytest.fixture
def foreign_kernel(monkeypatch, tmp_path_factory):
    """Offer a kernel of the same name, as another environment's Jupyter does."""
    folder = tmp_path_factory.mktemp("jupyter") / "kernels" / "python3"
    folder.mkdir(parents=True)
    spec = {"argv": ["false", "{connection_file}"], "display_name": "other", "language": "python"}
    (folder / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(folder.parents[1]))


@pytest.mark.slow
@pytest.mark.parametrize("status", ["RUNNING", "FINISHED"])
def test_failure_names_the_cell_the_error_and_the_partial_notebook(tiny, project, run, status):
    MlflowClient().update_run(run, status)  # a cell after the last that logs may fail, too
    with pytest.raises(RunError) as failed:
        tiny("1 + 1", "raise ValueError('too hot')")
    (partial,) = project.glob("runs/*/05_tiny.ipynb")
    assert "05_tiny failed in cell 4: ValueError: too hot" in str(failed.value)
    assert str(partial) in str(failed.value)
    parent = MlflowClient().get_run(run)
    assert parent.info.status == "FAILED"
    assert parent.data.tags["error"] == "ValueError: too hot"


@pytest.mark.slow
def test_failure_before_the_run_starts_leaves_no_run(tiny, store):
    with pytest.raises(RunError, match="ValueError: no such telemetry"):
        tiny("raise ValueError('no such telemetry')")
    assert search_runs("") == []


@pytest.mark.slow
def test_notebook_that_logs_nothing_runs_too(tiny, store):
    seconds, _ = tiny("import gc; assert gc.get_threshold()[0] == 50_000")  # else slow to load
    assert seconds["work"].item() >= 0


@pytest.mark.slow
def test_killed_kernel_is_told_and_its_run_closed(tiny, run):
    with pytest.raises(RunError, match="its kernel died"):
        tiny("import signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert MlflowClient().get_run(run).info.status == "KILLED"


@pytest.mark.slow
def test_kernel_that_does_not_start_is_told(tiny, store, monkeypatch):
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    with pytest.raises(RunError, match="05_tiny failed: its kernel died"):
        tiny("1 + 1")


@pytest.fixture
def interruptible():
    """Take a SIGINT as Python does by itself; a shell's background job ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.usefixtures("interruptible")
def test_interrupted_run_is_told_and_closed(tiny, run):
    """As Ctrl-C does it: the runner gets a SIGINT, its kernel does not."""
    interrupt = f"import signal, time; os.kill({os.getpid()}, signal.SIGINT); time.sleep(60)"
    with pytest.raises(RunError, match="interrupted: run it again; what was fitted is reused"):
        tiny(interrupt)
    assert MlflowClient().get_run(run).info.status == "KILLED"


@pytest.mark.slow
def test_what_is_cached_is_kept_unless_asked_for_fresh(store):
    cached = store / "data" / "cache" / "fits" / "a model"
    cached.mkdir(parents=True)
    runner.execute({}, say=print)
    assert cached.exists()
    runner.execute({}, say=print, fresh=True)
    assert not cached.exists()


@pytest.mark.slow
def test_a_ratio_that_the_simulated_folds_exceed_is_refused_before_a_kernel_starts(
    make_fleet, monkeypatch
):
    """Only where a parameter is set that it depends on: the defaults are known to work."""
    fleet, asked = make_fleet(racks=12, rows=200, event_racks=range(8)), []
    monkeypatch.setattr(
        "hvs_lib.telemetry.fleet.load_fleet", lambda **options: asked.append(options) or fleet
    )
    assert runner.check_telemetry(plan([])) == []
    assert runner.check_telemetry(plan(["01_baseline"], parameters={"sites": 3})) == []
    assert asked == []
    given = {"sites": 3, "sampling_strategy": 0.2, "normal_stride": 10, "hazard_stride": 1}
    with pytest.raises(RunError, match=r"sampling_strategy must be above 0\.\d+.* raise it above"):
        runner.check_telemetry(plan([], parameters=given))
    assert asked == [{"sites": 3, "seed": 42, "battery": "mix"}]
    cured = given | {"sampling_strategy": 0.9}
    assert runner.check_telemetry(plan([], parameters=cured)) == []


@pytest.mark.parametrize("names", [["04_comparison", "05_field_trial"], ["05_field_trial"]])
def test_the_trial_is_left_out_where_the_notebooks_before_it_registered_none(
    store, monkeypatch, names
):
    monkeypatch.setattr(runner, "_execute_one", lambda *_: {"total": 1.0})
    said = []
    seconds = runner.execute(plan(names), say=said.append)
    assert seconds.index.tolist() == names[:1], "by itself it says what is missing"
    left_out = "[2/2] 05_field_trial left out: no champion is registered"
    assert (left_out in said) == (len(names) == 2)


def test_outputs_are_kept_without_what_differs_from_run_to_run(project):
    bar = ["\r 1/2", "\r 2/2", "\r    \r"]
    frames = [*bar, "Run ID " + "a1" * 16 + "\n", "done\n", *bar]
    printed = [new_output("stream", name="stdout", text=frame) for frame in frames]
    noise = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    png = io.BytesIO()
    Image.fromarray(noise).save(png, "png")
    figure = {"image/png": base64.b64encode(png.getvalue()).decode()}
    printed.append(new_output("display_data", figure))
    widget = {"application/vnd.jupyter.widget-view+json": {"model_id": "b2" * 16}}
    printed.append(new_output("display_data", widget))
    cell = new_code_cell("1", execution_count=1, outputs=printed)
    only_a_bar = [new_output("stream", name="stdout", text=frame) for frame in bar]
    cells = [cell, new_code_cell("2", outputs=only_a_bar), new_markdown_cell("text")]
    for each in cells:
        each.metadata = {"papermill": {"duration": 1.5}, "tags": []}
    cells[1].metadata["tags"] = ["imports"]
    notebook = new_notebook(cells=cells, metadata={"papermill": {}, "a": 1})
    executed, kept = project / "executed.ipynb", project / "kept.ipynb"
    nbformat.write(notebook, executed)
    runner.keep_outputs(executed, kept)
    found = nbformat.read(kept, 4)
    assert found.metadata == {"a": 1}
    assert [cell.metadata for cell in found.cells] == [{}, {"tags": ["imports"]}, {}]
    said, drawn = found.cells[0].outputs
    assert said.text == "Run ID <run id>\ndone\n"
    kept_png = base64.b64decode(drawn.data["image/png"])
    image = Image.open(io.BytesIO(kept_png))
    assert (image.mode, image.size) == ("P", (80, 60)), "a palette of colours"
    assert len(kept_png) < 0.5 * len(png.getvalue())
    assert found.cells[1].outputs == []
