"""Prints a script that completes verbs, flags and config names in a shell.

eval "$(vit-jax completion bash)"          # In ~/.bashrc
eval "$(vit-jax completion zsh)"           # In ~/.zshrc
vit-jax completion fish | source           # In ~/.config/fish/config.fish
"""

from absl import flags

from vit_jax import cli
from vit_jax.config.shipped import shipped_configs
from vit_jax.errors import ConfigError

_BASH = """\
_vit_jax() {{
    local word="${{COMP_LINE:0:COMP_POINT}}" verb="${{COMP_WORDS[1]}}" words
    word="${{word##* }}"
    case "$word" in
        --config=*) words="{configs}" ;;
        -*) case "$verb" in
{cases}
            esac ;;
        *) [ "$COMP_CWORD" = 1 ] && words="{verbs}" ;;
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
    configs = list(shipped_configs())
    if shell == "fish":
        lines = ["complete -c vit-jax -f -n __fish_use_subcommand -a '" + " ".join(names) + "'"]
        for verb, help_texts in names.items():
            seen = f"-n '__fish_seen_subcommand_from {verb}'"
            for name, text in help_texts.items():
                values = f" -x -a '{' '.join(configs)}'" if name == "--config=" else ""
                quoted = text.replace("'", "")
                flag = name.removeprefix("--").rstrip("=")
                lines.append(f"complete -c vit-jax {seen} -l {flag} -d '{quoted}'{values}")
        return "\n".join(lines)
    if shell not in ("bash", "zsh"):
        raise ConfigError("Name a shell: vit-jax completion bash, zsh or fish.")
    cases = [
        f'                {verb}) words="{" ".join(help_texts)}" ;;'
        for verb, help_texts in names.items()
    ]
    text = _BASH.format(
        configs=" ".join(f"--config={name}" for name in configs),
        cases="\n".join(cases),
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


COMMAND = cli.Command(__doc__, define, main, takes_arguments=True)

if __name__ == "__main__":
    cli.run(COMMAND)
