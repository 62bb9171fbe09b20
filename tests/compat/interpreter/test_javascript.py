"""`run_code` with JavaScript and TypeScript."""


def text(execution) -> str | None:
    assert execution.error is None, execution.error
    return execution.text


def test_ci_046_import(sandbox):
    code = "import { readFileSync } from 'fs'\nimport * as os from 'node:os'\nconsole.log(typeof readFileSync, typeof os.platform)"
    assert sandbox.run_code(code, language="js").logs.stdout == ["function function\n"]
    assert text(sandbox.run_code("import path, { sep as slash } from 'path'\nslash + typeof path.join", language="js")) == "/function"
    missing = sandbox.run_code("import x from 'not-installed'", language="js")
    assert "not-installed" in missing.error.value


def test_ci_047_await(sandbox):
    assert text(sandbox.run_code("await Promise.resolve('Hello World!')", language="js")) == "Hello World!"
    assert text(sandbox.run_code("new Promise((done) => setTimeout(() => done(7), 50))", language="js")) == "7"


def test_ci_048_names_stay(sandbox):
    sandbox.run_code("x = 1; let y = 2", language="js")
    assert text(sandbox.run_code("x", language="js")) == "1"
    assert text(sandbox.run_code("let y = 3; y", language="js")) == "3"
    assert text(sandbox.run_code("const { a } = { a: 5 }; a", language="js")) == "5"


def test_ci_049_undefined_is_nothing(sandbox):
    execution = sandbox.run_code("undefined", language="js")
    assert (execution.results, execution.error) == ([], None)


def test_ci_050_modules_errors_and_output(sandbox):
    assert text(sandbox.run_code("require('os').platform()", language="js")) == "linux"
    assert text(sandbox.run_code("process.cwd()", language="js")) == "/home/user"
    assert text(sandbox.run_code("({ a: [1, { b: 2 }] })", language="js")) == "{ a: [ 1, { b: 2 } ] }"
    execution = sandbox.run_code("console.error('seen'); throw new TypeError('wrong')", language="js")
    assert execution.logs.stderr == ["seen\n"]
    assert (execution.error.name, execution.error.value) == ("TypeError", "wrong")
    assert execution.error.traceback.startswith("TypeError: wrong")
    assert sandbox.run_code("let = = 1", language="js").error.name == "SyntaxError"


def test_variables_of_one_execution(sandbox):
    read = "process.env.ONCE ?? 'absent'"
    assert text(sandbox.run_code(read, language="js", envs={"ONCE": "it's \"this\"\n"})) is not None
    assert text(sandbox.run_code("process.env.ONCE === 'a\\n\\'b'", language="js", envs={"ONCE": "a\n'b"})) == "true"
    assert text(sandbox.run_code(read, language="js")) == "absent"


def test_a_process_that_exits(sandbox):
    context = sandbox.create_code_context(language="javascript")
    execution = sandbox.run_code("process.exit(3)", context=context)
    assert execution.error.name == "ContextRestarting"
    assert text(sandbox.run_code("1 + 1", context=context)) == "2"
    sandbox.remove_code_context(context)


def test_ci_051_typescript(sandbox):
    assert sandbox.run_code("const m: string = 'x'; console.log(m)", language="ts").logs.stdout == ["x\n"]
    code = """
import type { Stats } from 'fs'
interface Point { x: number }
enum Colour { Red = 3, Green }
function first<T>(all: T[]): T { return all[0] }
const point: Point = { x: first<number>([4]) };
point.x + Colour.Green
"""
    assert text(sandbox.run_code(code, language="ts")) == "8"


def test_ci_052_typescript_has_names_of_its_own(sandbox):
    sandbox.run_code("only_js = 1", language="js")
    assert text(sandbox.run_code("typeof only_js", language="ts")) == "undefined"
    languages = [each.language for each in sandbox.list_code_contexts()]
    assert "typescript" in languages
