"""Prints a script that completes verbs, flags with their values, and config names in a shell.

eval "$(vit-jax completion bash)"          # In ~/.bashrc
eval "$(vit-jax completion zsh)"           # In ~/.zshrc
vit-jax completion fish | source           # In ~/.config/fish/config.fish
"""

from collections.abc import Iterable, Mapping

from absl import flags

from vit_jax import cli
from vit_jax.config.listing import config_keys
from vit_jax.config.shipped import shipped_configs
from vit_jax.errors import ConfigError

_SHELLS = ("bash", "zsh", "fish")
_BASH = """\
_vit_jax() {{
    local word="${{COMP_LINE:0:COMP_POINT}}" verb="${{COMP_WORDS[1]}}" words
    word="${{word##* }}"
    case "$word" in
        --config=*) words="{configs}" ;;
        --config.*) words="{keys}" ;;
        --*=*) case "$verb" in
{values}
            esac ;;
        -*) case "$verb" in
{cases}
            esac ;;
        *) if [ "$COMP_CWORD" = 1 ]; then words="{verbs}"; else case "$verb" in
{arguments}
            esac; fi ;;
    esac
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word")
    # Bash completes the part behind the equals sign only.
    case "$word" in *=*) COMPREPLY=("${{COMPREPLY[@]#*=}}") ;; esac
}}
complete -o default -o nospace -F _vit_jax vit-jax
"""


def define(values: flags.FlagValues) -> None:
    """Defines no flags."""


def script(shell: str, commands: dict[str, cli.Command]) -> str:
    """Returns the script for bash, zsh or fish.

    Args:
      shell: its name.
      commands: {verb: command}.

    Raises:
      ConfigError: an unknown shell.
    """
    names = {verb: _flags(command) for verb, command in commands.items()}
    accepted = {verb: _accepted_values(command) for verb, command in commands.items()}
    arguments = {verb: list(each.arguments()) for verb, each in commands.items() if each.arguments}
    configs = list(shipped_configs())
    if shell == "fish":
        lines = ["complete -c vit-jax -f -n __fish_use_subcommand -a '" + " ".join(names) + "'"]
        for verb, help_texts in names.items():
            seen = f"-n '__fish_seen_subcommand_from {verb}'"
            for name, text in help_texts.items():
                choices = configs if name == "--config=" else accepted[verb].get(name)
                values = f" -x -a '{' '.join(choices)}'" if choices else ""
                quoted = text.replace("'", "")
                flag = name.removeprefix("--").rstrip("=")
                lines.append(f"complete -c vit-jax {seen} -l {flag} -d '{quoted}'{values}")
            if words := arguments.get(verb):
                lines.append(f"complete -c vit-jax {seen} -f -a '{' '.join(words)}'")
        return "\n".join(lines)
    if shell not in _SHELLS:
        raise ConfigError("Name a shell: vit-jax completion bash, zsh or fish.")
    text = _BASH.format(
        configs=" ".join(f"--config={name}" for name in configs),
        keys=" ".join(f"--config.{key}=" for key in config_keys()),
        cases=_cases(names),
        values=_cases(
            {
                verb: [f"{name}{value}" for name, values in flag.items() for value in values]
                for verb, flag in accepted.items()
            }
        ),
        arguments=_cases(arguments),
        verbs=" ".join(names),
    )
    zsh = "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n"
    return (
        zsh
        + text.replace("mapfile -t COMPREPLY < <(", "COMPREPLY=($(").replace(
            '-- "$word")', '-- "$word"))'
        )
        if shell == "zsh"
        else text
    )


def _cases(words: Mapping[str, Iterable[str]]) -> str:
    """Returns the branches of a shell's `case` that set the words of each verb."""
    lines = [f'                {verb}) words="{" ".join(each)}" ;;' for verb, each in words.items()]
    return "\n".join(lines)


def _accepted_values(command: cli.Command) -> dict[str, list[str]]:
    """Returns {"--name=": accepted values} of the flags that declare them."""
    values = flags.FlagValues()
    command.define(values)
    parsers = {name: values[name].parser for name in values}
    return {
        f"--{name}=": list(parser.enum_values)
        for name, parser in parsers.items()
        if isinstance(parser, flags.EnumParser)
    }


def _flags(command: cli.Command) -> dict[str, str]:
    """Returns {"--name=" or, of a switch, "--name": its help}."""
    values = flags.FlagValues()
    command.define(values)
    return {
        f"--{name}{'' if values[name].boolean else '='}": str(values[name].help) for name in values
    } | {"--help": "Print the flags."}


def main(values: flags.FlagValues, arguments: list[str]) -> None:
    """Prints the script."""
    from vit_jax.__main__ import command, verbs

    commands = {verb: command(verb) for verb in verbs()}
    print(script(arguments[0] if len(arguments) == 1 else "", commands))


COMMAND = cli.Command(__doc__, define, main, takes_arguments=True, arguments=lambda: _SHELLS)

if __name__ == "__main__":
    cli.run(COMMAND)
