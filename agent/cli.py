"""The command line: verbs and options. Each verb imports what it needs, so that --help answers at once."""

import errno
import math
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from agent import ROOT
from agent.lab import files
from agent.lab.errors import UserError

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
ideas_app = typer.Typer(invoke_without_command=True, rich_markup_mode=None)
app.add_typer(ideas_app, name="ideas")

Model = Annotated[
    str | None, typer.Option(help="tiny-lm, a synthetic world (synth2k), a directory (./...), or a hub model.")
]
Text = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help="Text to train and evaluate on: a .txt, .jsonl or .parquet file, a folder of them, or a hub dataset.",
    ),
]
Hook = Annotated[str | None, typer.Option(help="TransformerLens hook to train on, e.g. blocks.1.hook_resid_post.")]
LANGUAGE_MODELS_OWN = ("dtype", "text", "evaluation_data")  # options that mean nothing for a world
SANDBOX = """Confine experiments: required, auto (as well as this machine can) or off."""
Wish = Literal["required", "auto", "off"]
CancelJobs = Annotated[
    bool, typer.Option("--cancel-jobs", help="Ctrl-C ends the jobs on the cluster too; else they go on, and it asks.")
]
Jobs = Annotated[
    int | None,
    typer.Option(min=1, help="Trainings at once; by default one a GPU, or as many as the cores have room for."),
]
LLMCommand = Annotated[
    str | None,
    typer.Option(
        metavar="COMMAND", help='A program that answers in place of a server, from its standard input: "claude -p".'
    ),
]
StudyPath = Annotated[Path, typer.Argument(metavar="STUDY", help="A study under runs/.")]
IdeaName = Annotated[str, typer.Argument(help="An idea: a directory of templates/ideas.")]

# What a machine refuses, with a message that says it all.
MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR)


@app.callback()
def agent() -> None:
    """Automated SAE experiments.

    Propose a change, train it, score it with SAE-Bench, compare at matched L0, write it up.
    """


@app.command()
def run(
    idea: Annotated[str, typer.Option(help="An idea: a directory of templates/ideas.")],
    max_runs: Annotated[int, typer.Option(min=1, help="Number of runs; the baseline is not counted.")],
    model: Model = None,
    hook: Hook = None,
    text: Text = None,
    evals: Annotated[
        str | None, typer.Option(help="Evaluations of each run: quick, standard, full, or names with commas between.")
    ] = None,
    evaluation_data: Annotated[
        Literal["local", "sae-bench"],
        typer.Option(help="What runs are scored on; sae-bench: its own datasets, where the hub has them."),
    ] = "local",
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N; by default the GPU if there is one.")] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16"] | None,
        typer.Option(help="The language model's, by default bfloat16 on a GPU and float32 on a CPU."),
    ] = None,
    max_hours: Annotated[
        float | None, typer.Option(help="Hours of work; no run starts that would exceed them.")
    ] = None,
    run_timeout: Annotated[
        float | None,
        typer.Option(
            min=1,
            help="Seconds for a training, its first steps, an evaluation; by default 5 times run 0's, at least 300.",
        ),
    ] = None,
    proposer: Annotated[str | None, typer.Option(help="template (the idea's own plan) or llm.")] = None,
    llm: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Language model at OPENAI_BASE_URL; needs OPENAI_API_KEY.")
    ] = None,
    llm_command: LLMCommand = None,
    llm_answer: Annotated[
        int | None, typer.Option(min=256, help="Longest answer of the language model, tokens; 16,384 by default.")
    ] = None,
    llm_stream: Annotated[
        bool, typer.Option("--llm-stream", help="Ask for answers piece by piece, where a proxy waits only so long.")
    ] = False,
    llm_window: Annotated[int | None, typer.Option(min=1, help="Context window of the language model, tokens.")] = None,
    max_llm_tokens: Annotated[
        int | None, typer.Option(min=1, help="Total token budget of the study, prompts plus answers.")
    ] = None,
    max_cost: Annotated[float | None, typer.Option(min=0, help="Total budget for the model, dollars.")] = None,
    price_in: Annotated[float | None, typer.Option(min=0, help="Dollars per million prompt tokens.")] = None,
    price_out: Annotated[float | None, typer.Option(min=0, help="Dollars per million answer tokens.")] = None,
    replay: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Replay the recorded answers of this transcript.jsonl; no network."),
    ] = None,
    jobs: Jobs = None,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1, help="Threads of each job, by default 1 on a CPU; figures compare at the same number alone."
        ),
    ] = None,
    executor: Annotated[
        Literal["local", "slurm"], typer.Option(help="Where jobs run: here, or on a cluster.")
    ] = "local",
    slurm: Annotated[
        str, typer.Option(metavar="OPTIONS", help='Long options of sbatch: "partition=gpu gpus=1 time=2:00:00".')
    ] = "",
    cancel_jobs: CancelJobs = False,
    approve: Annotated[bool, typer.Option("--approve", help="Show each change and ask before it runs.")] = False,
    sandbox: Annotated[Wish, typer.Option(help=SANDBOX)] = "auto",
) -> None:
    """Study an idea, from the baseline to the notes.

    Trains the baseline and one run for each proposal, compares them, and writes notes and plots. `agent resume`
    continues a study that was interrupted.
    """
    from agent import ideas
    from agent.commands import run as command
    from agent.lab import defaults
    from agent.lab.evaluation import catalogue
    from agent.proposers import select
    from agent.running.places import Place
    from agent.running.slurm import parse_options

    if max_hours is not None and not 0 < max_hours < math.inf:
        raise UserError(f"--max-hours {max_hours:g}: give a number of hours above 0")
    plan = ideas.load(idea)
    if evals:
        catalogue.parse_evals(evals)  # an unknown name is refused at once
    changes = {"model": _absolute(model), "dtype": dtype, "hook_name": hook, "text": _absolute_text(text)}
    changes |= {
        "threads": threads,
        "evals": evals,
        "evaluation_data": evaluation_data if evaluation_data != "local" else None,
    }
    fixed = plan.fixed.with_changes(**{name: value for name, value in changes.items() if value})
    if defaults.is_world(fixed.model) and (given := [name for name in LANGUAGE_MODELS_OWN if changes[name]]):
        option = f"--{given[0].replace('_', '-')}"
        raise UserError(f"{option} is a language model's, and {fixed.model} is a world without one: leave it out")
    if executor == "local" and slurm:
        raise UserError("--slurm is for --executor slurm: give that too, or leave it out")
    place = Place(parse_options(slurm) if executor == "slurm" else None)
    place.check()
    prices = select.price_pair(price_in, price_out)
    asked = {"window": llm_window, "answer": llm_answer, "stream": llm_stream or None}
    spend = {"max_tokens": max_llm_tokens, "max_cost": max_cost, "prices": prices}
    command.start(
        command.StudyRequest(
            idea=plan,
            fixed=fixed,
            max_runs=max_runs,
            max_hours=max_hours,
            run_timeout=run_timeout,
            device=device,
            language_model=select.requested_model(proposer, llm, llm_command, replay=replay, **asked, **spend),
            approve=approve,
            sandbox=sandbox,
            jobs=jobs,
            place=place,
            cancel_jobs=cancel_jobs,
        )
    )


@app.command()
def resume(
    path: Annotated[
        Path | None,
        typer.Argument(metavar="[STUDY]", help="A study under runs/; by default the newest that has not ended."),
    ] = None,
    max_runs: Annotated[int | None, typer.Option(min=1, help="Number of runs in all, from here on.")] = None,
    max_hours: Annotated[float | None, typer.Option(help="Hours of work in all, from here on.")] = None,
    llm: Annotated[str | None, typer.Option(metavar="MODEL", help="Language model that proposes from here on.")] = None,
    max_llm_tokens: Annotated[int | None, typer.Option(min=1, help="Token budget of the whole study.")] = None,
    max_cost: Annotated[float | None, typer.Option(min=0, help="Budget of the whole study, dollars.")] = None,
    price_in: Annotated[float | None, typer.Option(min=0, help="Dollars per million prompt tokens.")] = None,
    price_out: Annotated[float | None, typer.Option(min=0, help="Dollars per million answer tokens.")] = None,
    sandbox: Annotated[Wish | None, typer.Option(help=f"{SANDBOX[:-1]}; by default as the study began.")] = None,
    jobs: Jobs = None,
    cancel_jobs: CancelJobs = False,
) -> None:
    """Continue an interrupted study.

    It may have been interrupted or killed at any moment, and goes on within what is left of its budgets; with a larger
    one, or another language model, a study that had ended goes on too.
    """
    from agent.commands import run as command
    from agent.proposers.select import price_pair
    from agent.study.events import SettingsChanged

    wished = SettingsChanged(
        max_runs=max_runs,
        max_hours=max_hours,
        model=llm,
        max_tokens=max_llm_tokens,
        max_cost=max_cost,
        prices=price_pair(price_in, price_out),
    )
    command.resume(path, sandbox, jobs, cancel_jobs, wished)


@app.command()
def note(
    path: StudyPath,
    run_name: Annotated[str, typer.Argument(metavar="RUN", help="A run made by hand in its directory, e.g. run_6.")],
    message: Annotated[str, typer.Option("-m", "--message", help="What was tried, for the notes.")],
) -> None:
    """Add a run made by hand to a study.

    The run, made in the study's directory, joins its notes and plots.
    """
    from agent.commands import run as command

    command.note(path, run_name, message)


@app.command()
def show(
    path: Annotated[Path, typer.Argument(help="A run's directory, or a study's under runs/ or notes/.")],
    run: Annotated[int | None, typer.Option(min=0, help="A run of the study, also what the notes leave out.")] = None,
    latent: Annotated[
        int | None, typer.Option(min=0, help="Of a run: what is kept of one latent, with the contexts it fires in.")
    ] = None,
    neuronpedia: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Of a run: write its latents to FILE as Neuronpedia's JSON.")
    ] = None,
) -> None:
    """Show a study or a run.

    Of a study: the question, its answer, and a row for each run. Exit code 1 if a file was changed after the study
    recorded it; its figures are not shown.
    """
    from agent.commands import show, show_latent

    if latent is not None and neuronpedia:
        raise UserError("--latent shows one latent, and --neuronpedia writes all: give one of them")
    if run is not None and (latent is not None or neuronpedia):
        path, run = show.run_directory(path, run), None
    if latent is not None:
        sound = show_latent.show_latent(path, latent)
    elif neuronpedia:
        sound = show_latent.write_neuronpedia(path, neuronpedia)
    else:
        sound = show.show(path, run)
    if not sound:
        sys.exit(1)


@app.command()
def studies() -> None:
    """List all studies.

    A line for each: its idea, model and runs, the best outcome, whether it goes on, and its age.
    """
    from agent.commands.studies import print_studies

    print_studies(ROOT)


@app.command()
def review(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[STUDY ...]", help="Studies under runs/, side by side; by default the newest."),
    ] = None,
    serve: Annotated[
        bool, typer.Option("--serve", help="Serve the page on this machine; it loads again while a study runs.")
    ] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of --serve; 0: a free one.")] = 0,
) -> None:
    """Write a study as one HTML page.

    It shows answer, table, figures, each run with its change and conversation, and what latents respond to. The page
    is notes/STUDY/review.html, opens without a network, and loads nothing.
    """
    from agent.commands import review

    if port and not serve:
        raise UserError("--port is for --serve: give that too, or leave it out")
    if serve:
        review.serve(paths or [], port)
    else:
        review.review(paths or [])


@app.command()
def audit(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="A notes.txt, of this or an earlier system.")],
    results: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Directory of the runs; by default the results in the notes are used."),
    ] = None,
) -> None:
    """Check the claims of a notes.txt.

    Each is supported by its figures, contradicted, or unsupported. Exit code 1 unless all are supported.
    """
    from agent.audit import audit

    if not audit.audit(path, results):
        sys.exit(1)


@ideas_app.callback()
def ideas(context: typer.Context) -> None:
    """List the ideas, show one, or draft one."""
    from agent.commands.ideas import print_ideas

    if context.invoked_subcommand is None:
        print_ideas()


@ideas_app.command("show")
def show_idea(name: IdeaName) -> None:
    """Show an idea with its plan."""
    from agent.commands.ideas import print_idea
    from agent.ideas import load

    print_idea(load(name))


@ideas_app.command("new")
def new_idea(
    sentence: Annotated[str, typer.Argument(help="What to find out, in one sentence.")],
    llm: Annotated[str | None, typer.Option(metavar="MODEL", help="Language model at OPENAI_BASE_URL.")] = None,
    llm_command: LLMCommand = None,
) -> None:
    """Draft an idea and its plan with a language model, and save it if you approve."""
    from agent.commands import new_idea

    if bool(llm) == bool(llm_command):
        raise UserError("--llm MODEL asks a server, and --llm-command COMMAND a program: give one of them")
    new_idea.new(sentence, llm, command=llm_command)


@app.command()
def doctor(
    model: Model = "tiny-lm",
    hook: Hook = None,
    evals: Annotated[str, typer.Option(help="quick, standard, full, or names with commas between.")] = "full",
    d_sae: Annotated[int | None, typer.Option(min=1, help="Latents of a study, whose needs are shown.")] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="Training tokens, likewise.")] = None,
) -> None:
    """Show which evaluations can run here, and what a study needs.

    For the others it says what is missing. Exit code 1 if one cannot run, 2 if a study does not fit.
    """
    from agent.commands import doctor
    from agent.ideas import Fixed
    from agent.lab.evaluation import catalogue

    catalogue.parse_evals(evals)  # an unknown name is refused at once
    changes = {"model": _absolute(model), "hook_name": hook, "d_sae": d_sae, "tokens": tokens}
    fixed = Fixed.model_validate({name: value for name, value in changes.items() if value})
    raise typer.Exit(doctor.show(fixed, evals))


@app.command()
def cache(
    clear: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND",
            help="Delete activations, baselines, evaluation, texts, worlds or all; may be given again.",
        ),
    ] = None,
) -> None:
    """Show or clear what is cached.

    The cache lies under SAE_AGENT_CACHE, by default in the user's cache folder.
    """
    from agent.commands import cache

    if clear:
        cache.clear(clear)
    else:
        cache.show()


def main() -> None:
    """Run the console script.

    Exit codes: 0 done, 1 our fault or a failed study, 2 the user's mistake, 130 interrupted.
    """
    if sys.platform == "win32":
        _fail("sae-agent runs on Linux and macOS; on Windows use WSL", 2)
    # What lies beside `agent` is not imported by its name: an experiment may have put it there.
    sys.path[:] = [folder for folder in sys.path if folder and Path(folder) != ROOT]
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):  # set inside a git hook; a study has its own
        os.environ.pop(name, None)
    for number in (signal.SIGTERM, signal.SIGHUP):  # a study ends in order when its terminal closes, too
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)
    try:
        code = app(args=sys.argv[1:] or ["--help"], standalone_mode=False)
    except UserError as error:
        _fail(str(error), 2)
    except typer.TyperException as error:
        _fail(error.format_message().replace("Value error, ", "", 1), 2)
    except OSError as error:
        if error.errno not in MACHINE:
            raise
        _fail(f"{error.filename or 'while writing'}: {error.strerror}", 1)
    else:
        if code == 130:  # what typer makes of a Ctrl-C that no command has handled
            _fail("interrupted", 130)
        sys.exit(code if isinstance(code, int) else 0)


def _absolute(model: str | None) -> str | None:
    """Make a directory's path absolute, for child processes that run elsewhere; a bare name is a model's."""
    if model and (os.sep in model or model.startswith((".", "~"))):
        path = files.locate(model)
        return str(path.resolve()) if files.exists(path) and path.is_dir() else model
    return model


def _absolute_text(text: str | None) -> str | None:
    """Make the path of a file or folder absolute; any other name is a hub dataset's."""
    if text is None:
        return None
    if not text.strip():
        raise UserError("--text is empty: give a file, a folder or a hub dataset, or leave it out")
    path = files.locate(text)
    return str(path.resolve()) if files.exists(path) else text


def _fail(message: str, code: int) -> None:
    from agent.lab.visible import one_line

    print(f"error: {one_line(message)}", file=sys.stderr)
    sys.exit(code)
