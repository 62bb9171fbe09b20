"""`run_code` of the official package with Python: results, errors, variables, contexts."""

import time
from threading import Thread

import pytest
from conftest import TEMPLATE
from e2b import SandboxException, TimeoutException
from e2b_code_interpreter import Sandbox


@pytest.mark.parametrize(
    "language, read, unset",
    [
        ("python", "import os; os.environ.get('{}', 'unset')", "unset"),
        ("js", "process.env.{} ?? 'unset'", "unset"),
        ("ts", "process.env.{} ?? 'unset'", "unset"),
        ("bash", "printf %s ${{{}-unset}}", "unset"),
    ],
)
def test_ci_022_variables_in_each_language(with_variables, language, read, unset):
    def value(name: str, **more) -> str:
        execution = with_variables.run_code(read.format(name), language=language, **more)
        return execution.text if language != "bash" else "".join(execution.logs.stdout)

    assert value("OF_SANDBOX") == "outer"
    assert value("OF_EXECUTION", envs={"OF_EXECUTION": "inner"}) == "inner"
    assert value("OF_EXECUTION") == unset
    assert value("OF_SANDBOX", envs={"OF_SANDBOX": "over"}) == "over"
    assert value("OF_SANDBOX") == "outer"


@pytest.fixture(scope="module")
def with_variables():
    with Sandbox.create(TEMPLATE, timeout=300, envs={"OF_SANDBOX": "outer"}) as made:
        yield made


def test_ci_023_an_exception_is_an_answer(sandbox):
    execution = sandbox.run_code("raise ValueError('x')")
    assert (execution.error.name, execution.error.value, execution.results) == ("ValueError", "x", [])


def test_ci_024_a_timeout_interrupts(sandbox):
    sandbox.run_code("x = 5")
    start = time.monotonic()
    with pytest.raises(TimeoutException):
        sandbox.run_code("import time; time.sleep(300)", timeout=3)
    # Five times the figure.
    assert 2.9 <= time.monotonic() - start < 4 * 5
    start = time.monotonic()
    assert sandbox.run_code("1+1").text == "2"
    assert time.monotonic() - start < 2 * 5
    assert sandbox.run_code("x").text == "5"


def test_ci_024_code_that_will_not_be_interrupted(sandbox):
    context = sandbox.create_code_context()
    stubborn = "import time\nwhile True:\n    try:\n        time.sleep(9)\n    except KeyboardInterrupt:\n        pass"
    with pytest.raises(TimeoutException):
        sandbox.run_code(stubborn, context=context, timeout=1)
    assert sandbox.run_code("1+1", context=context, timeout=30).text == "2"
    sandbox.remove_code_context(context)


def test_ci_025_without_a_timeout(silent):
    """A silent cell of 70 s, which runs beside the tests before this one."""
    (execution,) = silent()
    assert execution.text == "7"


def test_ci_026_a_kill_is_told(own):
    sandbox = own()
    sandbox.run_code("1")
    killer = Thread(target=lambda: (time.sleep(2), sandbox.kill()))
    killer.start()
    with pytest.raises(TimeoutException, match="sandbox was killed while the request was in progress"):
        sandbox.run_code("import time; time.sleep(60)")
    killer.join()


def test_ci_027_a_kernel_that_ends(sandbox):
    context = sandbox.create_code_context()
    for code in ("import os; os._exit(1)", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"):
        execution = sandbox.run_code(code, context=context)
        assert (execution.error.name, execution.error.value) == ("ContextRestarting", "Context was restarted")
        start = time.monotonic()
        assert sandbox.run_code("1+1", context=context).text == "2"
        assert time.monotonic() - start < 3 * 5
    sandbox.remove_code_context(context)


def test_ci_028_variables_are_data(sandbox):
    value = "'\"\n$HOME `x` \\ é \U0001f600"
    read = "import os\nos.environ.get('TRICKY')"
    assert sandbox.run_code("import os\nos.environ['TRICKY'] == " + repr(value), envs={"TRICKY": value}).text == "True"
    assert sandbox.run_code(read).results == []
    execution = sandbox.run_code("1\n\n1/0", envs={"TRICKY": value})
    assert "line 3" in execution.error.traceback


def test_ci_029_variables_of_sandbox_and_execution(own):
    sandbox = own(envs={"A": "1"})
    read = "import os; int(os.environ['A'])"
    assert sandbox.run_code(read).text == "1"
    assert sandbox.run_code(read, envs={"A": "2"}).text == "2"
    assert sandbox.run_code(read).text == "1"
    context = sandbox.create_code_context()
    assert sandbox.run_code(read, context=context).text == "1"
    sandbox.restart_code_context(context)
    assert sandbox.run_code(read, context=context).text == "1"


def test_ci_030_code_is_root_and_commands_are_not(sandbox):
    assert sandbox.run_code("!whoami").logs.stdout == ["root\r\n"]
    assert sandbox.commands.run("whoami").stdout == "user\n"


def test_ci_031_a_directory_that_is_not_there(sandbox):
    before = len(sandbox.list_code_contexts())
    with pytest.raises(SandboxException, match="Failed to set working directory"):
        sandbox.create_code_context(cwd="/nope")
    assert len(sandbox.list_code_contexts()) == before
    context = sandbox.create_code_context(cwd="/tmp")
    assert sandbox.run_code("!pwd", context=context).logs.stdout == ["/tmp\r\n"]
    sandbox.remove_code_context(context)


def test_ci_032_contexts_are_apart_and_one_is_in_order(sandbox):
    other = sandbox.create_code_context()
    sleeping = Thread(target=lambda: sandbox.run_code("import time; time.sleep(6); order = ['first']"))
    sleeping.start()
    time.sleep(1)
    start = time.monotonic()
    assert sandbox.run_code("2+2", context=other).text == "4"
    assert time.monotonic() - start < 4
    assert sandbox.run_code("order").results[0].json == ["first"]
    sleeping.join()
    sandbox.remove_code_context(other)


def test_ci_033_nobody_types(sandbox):
    assert sandbox.run_code("input()").error.name == "StdinNotImplementedError"


@pytest.mark.parametrize(
    "code, shown",
    [
        ("%pip --version", "pip "),
        ("!echo shell", "shell"),
        ("%%bash\necho $((6*7))", "42"),
        ("%cd /tmp", "/tmp"),
        ("%timeit -n1 -r1 pass", "loop"),
        ("import asyncio\nawait asyncio.sleep(0)\nprint('awaited')", "awaited"),
    ],
)
def test_ci_034_what_only_ipython_has(sandbox, code, shown):
    context = sandbox.create_code_context()
    execution = sandbox.run_code(code, context=context)
    assert execution.error is None
    assert shown in "".join(execution.logs.stdout)
    sandbox.remove_code_context(context)


def test_ci_035_a_table_is_data(sandbox):
    code = "import pandas as pd\npd.DataFrame({'t': pd.to_datetime(['2024-01-02', None]), 'v': [1.5, float('nan')], 's': ['a', None]})"
    (result,) = sandbox.run_code(code).results
    assert result.data == {"t": ["2024-01-02T00:00:00", None], "v": [1.5, None], "s": ["a", None]}
    assert "<table" in result.html and "2024-01-02" in result.text


def test_ci_036_plain_values_are_json(sandbox):
    assert sandbox.run_code("[1, {'a': 2}]").results[0].json == [1, {"a": 2}]
    assert sandbox.run_code("{1: 2}").results[0].json == {"1": 2}


def test_ci_037_plotly_brings_its_own_format(sandbox):
    execution = sandbox.run_code("import plotly.graph_objects as go\ngo.Figure(go.Scatter(x=[1, 2], y=[3, 4])).show()")
    result = execution.results[-1]
    assert result.html
    assert "application/vnd.plotly.v1+json" in result.extra
    assert "application/vnd.plotly.v1+json" in list(result.formats())


def test_ci_038_a_scatter_is_a_chart(sandbox):
    code = "import matplotlib.pyplot as plt\nplt.scatter([1, 2], [3, 4], label='dots')\nplt.title('T')\nplt.xlabel('time (s)')\nplt.show()"
    (result,) = sandbox.run_code(code).results
    chart = result.chart.to_dict()
    assert (chart["type"], chart["title"], chart["x_unit"]) == ("scatter", "T", "s")
    assert chart["elements"][0] == {"label": "dots", "points": [[1.0, 3.0], [2.0, 4.0]]}
    assert result.png.startswith("iVBOR")


def test_ci_039_a_blank_figure_is_no_chart(sandbox):
    execution = sandbox.run_code("import matplotlib.pyplot as plt\nplt.figure()\nplt.show()")
    assert execution.error is None
    assert all(result.chart is None for result in execution.results)


def test_results_in_many_formats(sandbox):
    code = """
from IPython.display import HTML, Latex, Markdown, SVG, display, Javascript, JSON
for shown in (HTML('<b>x</b>'), Latex('$x$'), Markdown('# x'), SVG('<svg/>'), Javascript('x'), JSON({'a': 1})):
    display(shown)
display({'text/latex': 'only'}, raw=True)
'end'
"""
    execution = sandbox.run_code(code)
    named = [next(iter(set(result.formats()) - {"text"})) for result in execution.results[:6]]
    assert named == ["html", "latex", "markdown", "svg", "javascript", "json"]
    assert list(execution.results[6].formats()) == ["latex"]
    assert execution.text == "end"
    assert not execution.results[0].is_main_result and execution.results[7].is_main_result


def test_output_is_streamed(sandbox):
    heard, start = [], time.monotonic()
    code = "import time\nfor n in range(3):\n    print(n, flush=True)\n    time.sleep(1)"
    sandbox.run_code(code, on_stdout=lambda message: heard.append((message.line, time.monotonic() - start)))
    assert [line for line, _ in heard] == ["0\n", "1\n", "2\n"]
    assert heard[2][1] - heard[0][1] > 1.5, "they came one after the other"


def test_a_figure_left_open_is_shown(sandbox):
    first, second = sandbox.run_code("import matplotlib.pyplot as plt\nplt.plot([1, 2])").results
    shown, main = sorted((first, second), key=lambda result: result.is_main_result)
    assert shown.png and shown.chart
    assert main.text.startswith("[<matplotlib.lines.Line2D")


def test_images_are_shown(sandbox):
    code = "from PIL import Image\nimage = Image.new('RGB', (4, 4))\nimage.save('/tmp/a.png')\nimage.show()\nimage"
    results = sandbox.run_code(code).results
    assert [bool(result.png and result.jpeg) for result in results] == [True, True, True]
