"""Installed kernels of Jupyter: ipykernel under its own name and under others, and kernels that do not start."""

import json

import pytest
from e2b import SandboxException, TimeoutException

FOLDER = "/usr/local/share/jupyter/kernels"


@pytest.fixture(scope="module")
def context(sandbox):
    """One of ipykernel, installed under the name of another language."""
    spec = {
        "argv": ["python3", "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "language": "python",
        "env": {"FROM_SPEC": "yes"},
    }
    sandbox.files.write(f"{FOLDER}/Elsewhere/kernel.json", json.dumps(spec), user="root")
    return sandbox.create_code_context(language="elsewhere", cwd="/tmp")


def test_a_kernel_of_jupyter(sandbox, context):
    assert context.language == "elsewhere"
    code = "import os, sys\nprint('out')\nprint('err', file=sys.stderr)\n[os.getcwd(), os.environ['FROM_SPEC']]"
    execution = sandbox.run_code(code, context=context)
    assert (execution.logs.stdout, execution.logs.stderr) == (["out\n"], ["err\n"])
    assert execution.text == "['/tmp', 'yes']"
    assert sandbox.run_code("os.system('echo from a program'); None", context=context).logs.stdout == ["from a program\n"]
    count = sandbox.run_code("kept = 5", context=context).execution_count
    execution = sandbox.run_code("display(kept)\n1/0", context=context)
    assert execution.execution_count == count + 1
    assert (execution.error.name, execution.error.value) == ("ZeroDivisionError", "division by zero")
    assert (execution.results[0].text, execution.results[0].is_main_result) == ("5", False)
    assert sandbox.run_code("input()", context=context).error.name == "StdinNotImplementedError"


def test_what_it_draws_is_shown(sandbox, context):
    code = "%matplotlib inline\nimport matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()\n'drawn'"
    execution = sandbox.run_code(code, context=context)
    assert execution.text == "drawn"
    assert any(result.png and result.png.startswith("iVBOR") for result in execution.results)


def test_variables_of_one_execution(sandbox, context):
    value = "it's \"two\"\nlines $HOME \\ é"
    read = "import os\n[os.environ.get('ONCE'), os.environ['FROM_SPEC']]"
    sandbox.run_code("seen = None", context=context)
    execution = sandbox.run_code(f"import os\nos.environ['ONCE'] == {value!r}", context=context, envs={"ONCE": value})
    assert execution.text == "True"
    sandbox.run_code("1", context=context, envs={"FROM_SPEC": "changed"})
    assert sandbox.run_code(read, context=context).text == "[None, 'yes']"
    execution = sandbox.run_code("1\n\n1/0", context=context, envs={"ONCE": value})
    assert "line 3" in execution.error.traceback.replace("\x1b[32m", "").replace("\x1b[39m", "")


def test_interrupt_and_death(sandbox, context):
    sandbox.run_code("kept = 7", context=context)
    with pytest.raises(TimeoutException):
        sandbox.run_code("import time; time.sleep(300)", context=context, timeout=2)
    assert sandbox.run_code("kept", context=context).text == "7"
    execution = sandbox.run_code("import os; os._exit(3)", context=context)
    assert (execution.error.name, execution.error.value) == ("ContextRestarting", "Context was restarted")
    assert sandbox.run_code("1+1", context=context).text == "2"
    # The driver's own death takes the kernel with it.
    pid = sandbox.run_code("import os; os.getpid()", context=context).text
    sandbox.commands.run("kill -9 $(pgrep -f 'kernel [^ ]*Elsewhere/kernel.json')", user="root")
    assert sandbox.run_code("1+1", context=context).text == "2"
    assert sandbox.commands.run(f"test -e /proc/{pid} && echo there || echo gone").stdout == "gone\n"


def test_by_the_name_that_its_package_gave_it(sandbox):
    assert sandbox.run_code("6*7", language="python3").text == "42"


def test_kernels_that_do_not_start(sandbox):
    specs = {
        "absent": ({"argv": ["/nowhere/at/all"]}, "cannot start `/nowhere/at/all`"),
        "ending": ({"argv": ["sh", "-c", "exit 3"]}, "the kernel ended"),
        "empty": ({"argv": []}, "names no program"),
        "strange": ("{", "describes no kernel"),
    }
    for name, (spec, said) in specs.items():
        text = spec if isinstance(spec, str) else json.dumps(spec)
        sandbox.files.write(f"{FOLDER}/{name}/kernel.json", text, user="root")
        with pytest.raises(SandboxException, match="Failed to create context") as refused:
            sandbox.run_code("1", language=name)
        assert said in str(refused.value)
    assert sandbox.run_code("1+1").text == "2"


def test_variables_of_a_language_that_nobody_knows(sandbox):
    spec = {"argv": ["python3", "-m", "ipykernel_launcher", "-f", "{connection_file}"], "language": "martian"}
    sandbox.files.write(f"{FOLDER}/martian/kernel.json", json.dumps(spec), user="root")
    execution = sandbox.run_code("1", language="martian", envs={"A": "b"})
    assert execution.error.name == "VariablesNotSupported" and "martian" in execution.error.value
    assert sandbox.run_code("2", language="martian").text == "2"
