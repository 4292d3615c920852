"""The workbook in a real browser: JupyterLab's Run All, the slider, and the MLflow UI.

The screenshots are kept in runs/screenshots, or the folder that HVS_SCREENSHOTS names.
"""

import json
import os
import shutil
import time
from pathlib import Path

import nbformat
import papermill as pm
import pytest
import yaml
from mlflow import MlflowClient
from projects import BIN, store_of
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from hvs_lib import columns as col
from hvs_lib import runner

ROOT = Path(__file__).parents[2]
SCREENSHOTS = Path(os.environ.get("HVS_SCREENSHOTS") or ROOT / "runs" / "screenshots")
SETTINGS = {  # all cells in the page at once, so that each can be looked at
    "@jupyterlab/notebook-extension/tracker.jupyterlab-settings": {"windowingMode": "none"},
    "@jupyterlab/apputils-extension/notification.jupyterlab-settings": {"fetchNews": "false"},
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which("chromedriver") and shutil.which("chromium")),
        reason="needs a browser: apt-get install chromium chromium-driver",
    ),
]


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1400,1000"):
        options.add_argument(flag)
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    yield driver
    driver.quit()


def prepare(notebook, copy, parameters):
    """Copy a notebook with other parameters, and without its outputs."""
    pm.execute_notebook(notebook, copy, parameters, prepare_only=True, progress_bar=False)
    prepared = nbformat.read(copy, 4)
    for cell in prepared.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(prepared, copy)


@pytest.fixture(scope="module")
def lab(smoke, workplace, serve, tmp_path_factory):
    """Serve copies of the notebooks, with the parameters of the smoke profile, in JupyterLab."""
    folder = tmp_path_factory.mktemp("lab")
    parameters = yaml.safe_load((ROOT / "notebooks" / "params" / "smoke.yaml").read_text())
    for name, path in runner.notebooks().items():
        own = {k: v for k, v in parameters.items() if k in pm.inspect_notebook(str(path))}
        prepare(path, folder / f"{name}.ipynb", own)
    for name, values in SETTINGS.items():
        path = folder / "settings" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    environment = os.environ | {
        "HVS_PROJECT_ROOT": str(workplace.root), "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings")
    }  # fmt: skip
    command = [BIN / "jupyter", "lab", f"--notebook-dir={folder}", "--no-browser", "--allow-root"]
    command += ["--IdentityProvider.token=", "--ip=127.0.0.1"]
    server = serve(lambda port: [*command, f"--port={port}"], path="/api", env=environment)
    return server.address, folder


@pytest.fixture(scope="module")
def mlflow_ui(smoke, workplace, serve):
    store = store_of(workplace.root)
    command = [BIN / "mlflow", "ui", "--backend-store-uri", store, "--workers", "1", "--port"]
    return serve(lambda port: [*command, port]).address, MlflowClient(store)


def wait(browser, is_true, seconds=180):
    """Wait until a script that returns a value returns a true one."""

    def ask(_):
        try:
            return browser.execute_script(is_true)
        except WebDriverException:
            return False

    return WebDriverWait(browser, seconds, poll_frequency=0.3).until(ask, message=is_true)


def has_text(text):
    return f"return document.body.innerText.includes({json.dumps(text)})"


def choose(browser, menu, entry):
    """Click an entry of a menu."""
    for text, kind in ((menu, "lm-MenuBar-itemLabel"), (entry, "lm-Menu-itemLabel")):
        labels = f"[...document.querySelectorAll('.{kind}')]"
        find = f"return {labels}.find(label => label.textContent === {json.dumps(text)})"
        wait(browser, find, 10).click()


def open_and_run_all(browser, lab, name):
    """Open a notebook, choose Run All Cells from the menu and wait for the last cell."""
    address, _ = lab
    browser.get(f"{address}/lab/tree/{name}.ipynb?reset")
    idle = "document.querySelector('.jp-Notebook-ExecutionIndicator')?.dataset.status"
    wait(browser, has_text("| Idle"))  # else JupyterLab asks for the kernel
    prompts = "[...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(p => p.innerText)"
    executed = f"{prompts}.every(prompt => /\\d/.test(prompt))"
    ended = f"{idle} === 'idle' && !{prompts}.some(prompt => prompt.includes('*'))"
    for attempt in range(10):  # what is asked of a page that is still being laid out may be lost
        try:
            choose(browser, "Run", "Run All Cells")
            wait(browser, f"return {prompts}.some(prompt => /[*\\d]/.test(prompt))", 10)
            wait(browser, f"return {ended}", 400)
            if browser.execute_script(f"return {executed}"):
                return
            assert texts_of_output(browser, "application/vnd.jupyter.error") == []
        except WebDriverException as error:
            print(f"{name}, attempt {attempt}: {type(error).__name__}")
            dialog = browser.find_elements(By.CSS_SELECTOR, ".jp-Dialog-button.jp-mod-accept")
            if dialog:  # it asks for the kernel
                dialog[0].click()
        browser.save_screenshot(SCREENSHOTS / f"{name}_attempt_{attempt}.png")
    raise AssertionError(f"{name} was not executed as a whole")


def texts_of_output(browser, kind):
    outputs = f"[...document.querySelectorAll('.jp-OutputArea-output[data-mime-type=\"{kind}\"]')]"
    return browser.execute_script(f"return {outputs}.map(output => output.innerText)")


# The comparison comes last, since the test of its slider goes on from there.
@pytest.mark.parametrize("name", sorted(runner.notebooks(), key=lambda n: n == runner.COMPARISON))
def test_run_all_ends_without_an_error_and_shows_the_figures(browser, lab, name):
    open_and_run_all(browser, lab, name)
    assert texts_of_output(browser, "application/vnd.jupyter.error") == []
    assert texts_of_output(browser, "application/vnd.jupyter.stderr") == []
    committed = nbformat.read(runner.notebooks()[name], 4)
    expected = sum(
        "image/png" in output.get("data", {})
        for cell in committed.cells
        for output in cell.get("outputs", [])
    )
    sizes = browser.execute_script(
        "return [...document.querySelectorAll('.jp-OutputArea img')].map(i => i.naturalWidth)"
    )
    assert len(sizes) >= expected >= 1
    assert min(sizes) > 300
    browser.execute_script(
        "document.querySelectorAll('.jp-OutputArea img')[0].scrollIntoView({block: 'center'})"
    )
    time.sleep(0.5)
    browser.save_screenshot(SCREENSHOTS / f"{name}.png")


def test_slider_moves_and_its_figure_follows(browser, lab):
    if runner.COMPARISON not in browser.current_url:
        open_and_run_all(browser, lab, runner.COMPARISON)
    source = "document.querySelector('.widget-interact img, .jupyter-widgets img')?.src"
    wait(browser, f"return {source}")
    handle = browser.find_element(By.CSS_SELECTOR, ".noUi-handle")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", handle)
    browser.save_screenshot(SCREENSHOTS / "slider_before.png")
    before = browser.execute_script(f"return {source}")
    handle.send_keys(*[Keys.ARROW_LEFT] * 12)
    wait(browser, f"const now = {source}; return now && now !== {json.dumps(before)}")
    time.sleep(1)
    browser.save_screenshot(SCREENSHOTS / "slider_after.png")


EVIL = "<script>document.title = 'evil'</script>../../../etc/$\\frac$"


@pytest.fixture(scope="module")
def evil_notebook(lab, make_telemetry):
    """Give 00_data telemetry whose ids are HTML, paths and mathematics."""
    telemetry = make_telemetry(look_alike_racks=(4, 5))
    for name in (col.SITE, col.RACK, col.MODULE, col.EVENT_TYPE):
        telemetry[name] = EVIL + telemetry[name].astype(object)
    _, folder = lab
    telemetry.to_parquet(folder / "evil.parquet")
    own = {"data_path": str(folder / "evil.parquet")}
    path = runner.notebooks()["00_data"]
    prepare(path, folder / "evil.ipynb", own)
    return "evil"


def test_ids_from_data_are_shown_as_text(browser, lab, evil_notebook):
    open_and_run_all(browser, lab, evil_notebook)
    assert browser.title != "evil"
    assert browser.execute_script(
        "return document.querySelectorAll('.jp-OutputArea script').length"
    ) == 0  # fmt: skip
    assert texts_of_output(browser, "application/vnd.jupyter.error") == []
    table = "document.querySelector('.jp-RenderedHTMLCommon table')"
    assert EVIL[:40] in browser.execute_script(f"return {table}.innerText")  # pandas cuts it off
    browser.execute_script(f"{table}.scrollIntoView({{block: 'center'}})")
    browser.save_screenshot(SCREENSHOTS / "evil_ids.png")


def test_mlflow_shows_experiments_nested_runs_a_comparison_and_a_figure(browser, mlflow_ui):
    address, client = mlflow_ui
    browser.get(f"{address}/#/experiments")
    for stage in ("Data", "Baseline", "Tuning", "SMOTE", "Comparison"):
        wait(browser, has_text(f"HVS_Fire_Prediction_{stage}"))
    browser.save_screenshot(SCREENSHOTS / "mlflow_experiments.png")

    experiment = client.get_experiment_by_name("HVS_Fire_Prediction_Tuning").experiment_id
    browser.get(f"{address}/#/experiments/{experiment}/runs?searchFilter=&viewStateShareKey=")
    wait(browser, has_text("02_tuning"))
    candidates = [
        run
        for run in client.search_runs([experiment])
        if run.data.tags["role"] == "candidate" and run.info.status == "FINISHED"
    ]
    expand = "document.querySelector('[data-testid=\"expander-button\"], .ag-row button')"
    browser.execute_script(f"{expand}?.click()")
    wait(browser, has_text("candidate 01"))
    browser.save_screenshot(SCREENSHOTS / "mlflow_nested_runs.png")

    ids = json.dumps([run.info.run_id for run in candidates[:2]])
    browser.get(f'{address}/#/compare-runs?runs={ids}&experiments=["{experiment}"]')
    wait(browser, has_text("Comparing 2 Runs"))
    wait(browser, has_text("cv_pr_auc"))
    wait(browser, "return document.querySelector('.js-plotly-plot svg')")
    browser.save_screenshot(SCREENSHOTS / "mlflow_compare.png")

    (model, *_) = [
        run for run in client.search_runs([experiment]) if run.data.tags["role"] == "model"
    ]
    place = f"{address}/#/experiments/{experiment}/runs/{model.info.run_id}/artifacts"
    browser.get(f"{place}/confusion_matrix.png")
    wait(browser, "return [...document.querySelectorAll('img')].some(i => i.naturalWidth > 300)")
    browser.save_screenshot(SCREENSHOTS / "mlflow_figure.png")
