"""Package managers inside a sandbox, with the sources of the machine that built the template."""

import pytest


@pytest.mark.parametrize(
    "command, shows",
    [
        ("pip install -q six && python -c 'import six; print(six.__name__)'", "six"),
        ("cd $(mktemp -d) && npm install --silent left-pad && ls node_modules", "left-pad"),
        ("cd $(mktemp -d) && yarn --silent add left-pad 2> /dev/null && ls node_modules", "left-pad"),
        ("sudo apt-get update -q > /dev/null && sudo apt-get install -q cowsay > /dev/null && /usr/games/cowsay x", "< x >"),
    ],
    ids=["pip", "npm", "yarn", "apt"],
)
def test_a_package_is_installed_and_used(sandbox, command, shows):
    assert shows in sandbox.commands.run(command, timeout=100).stdout
