"""The command line: verbs and options. Each verb imports what it needs, so that --help answers at once."""

import errno
import math
import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from agent import ROOT, idea_verbs, options, sae_verbs
from agent.lab.errors import UserError

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
app.add_typer(idea_verbs.app, name="ideas")
app.add_typer(sae_verbs.app)

StudyPath = Annotated[Path, typer.Argument(metavar="STUDY", help="A study under runs/.")]

# What a machine refuses, with a message that says it all.
MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR)


@app.callback()
def agent() -> None:
    """Automated SAE experiments.

    Propose a change, train it, score it with SAE-Bench, compare at matched L0, write it up.
    """


@app.command()
def run(
    idea: options.IdeaOption,
    max_runs: options.MaxRuns,
    model: options.Model = None,
    hook: options.Hook = None,
    layer: options.Layer = None,
    d_sae: options.DSae = None,
    baseline: options.Baseline = None,
    k: options.K = None,
    l1_coefficient: options.L1Coefficient = None,
    tokens: options.Tokens = None,
    batch: options.Batch = None,
    lr: options.LearningRate = None,
    seed: options.Seed = None,
    context: options.Context = None,
    smallest_effect: options.SmallestEffect = None,
    sets: options.Sets = None,
    text: options.Text = None,
    stream: options.Stream = False,
    evals: options.Evals = None,
    evaluation_data: options.EvaluationData = "local",
    device: options.Device = None,
    dtype: options.Dtype = None,
    no_tune: options.NoTune = False,
    baseline_seeds: options.BaselineSeeds = None,
    ks: options.Ks = None,
    references: options.References = None,
    max_hours: options.MaxHours = None,
    run_timeout: options.RunTimeout = None,
    proposer: options.Proposer = None,
    llm: options.LLM = None,
    llm_command: options.LLMCommand = None,
    llm_answer: options.LLMAnswer = None,
    llm_stream: options.LLMStream = False,
    llm_window: options.LLMWindow = None,
    max_llm_tokens: options.MaxLLMTokens = None,
    max_cost: options.MaxCost = None,
    price_in: options.PriceIn = None,
    price_out: options.PriceOut = None,
    replay: options.ReplayFile = None,
    jobs: options.Jobs = None,
    threads: options.Threads = None,
    executor: options.ExecutorName = "local",
    slurm: options.SlurmOptions = "",
    cancel_jobs: options.CancelJobs = False,
    approve: options.Approve = False,
    sandbox: options.Sandbox = "auto",
    track: options.Track = None,
    dry_run: options.DryRun = False,
) -> None:
    """Study an idea, from the baseline to the notes.

    Trains the baseline and one run for each proposal, compares them, and writes notes and plots. `agent resume`
    continues a study that was interrupted.
    """
    from agent import ideas
    from agent.commands import run as command
    from agent.commands import study_settings
    from agent.commands.dry_run import show
    from agent.comparison import front
    from agent.lab.evaluation import catalogue
    from agent.proposers import select
    from agent.running.places import Place
    from agent.running.slurm import parse_options

    if max_hours is not None and not 0 < max_hours < math.inf:
        raise UserError(f"--max-hours {max_hours:g}: give a number of hours above 0")
    plan = ideas.load(idea)
    if evals is not None:
        catalogue.parse_evals(evals)  # an unknown name is refused at once
    if executor == "local" and slurm:
        raise UserError("--slurm is for --executor slurm: give that too, or leave it out")
    place = Place(parse_options(slurm) if executor == "slurm" else None)
    place.check()
    prices = select.price_pair(price_in, price_out)
    asked = {"window": llm_window, "answer": llm_answer, "stream": llm_stream or None}
    spend = {"max_tokens": max_llm_tokens, "max_cost": max_cost, "prices": prices}
    language_model = select.requested_model(proposer, llm, llm_command, replay=replay, **asked, **spend)
    given = {"model": model, "hook_name": hook, "layer": layer, "d_sae": d_sae, "tokens": tokens}
    given |= {"baseline": baseline, "k": k, "l1_coefficient": l1_coefficient, "baseline_seeds": baseline_seeds}
    given |= {"batch": batch, "learning_rate": lr, "seed": seed, "context": context, "smallest_effect": smallest_effect}
    given |= {"text": text, "stream": stream or None, "dtype": dtype, "threads": threads, "evals": evals}
    given |= {"evaluation_data": evaluation_data if evaluation_data != "local" else None}
    settled = study_settings.settle(plan, given, sets or (), on_cluster=place.slurm is not None)
    request = command.StudyRequest(
        idea=plan,
        fixed=settled.fixed,
        smallest_effect=settled.smallest_effect,
        max_runs=max_runs,
        max_hours=max_hours,
        run_timeout=run_timeout,
        device=device,
        tune=not no_tune and settled.rate_is_a_guess,
        ks=front.parse_ks(ks, settled.fixed) if ks is not None else (),
        references=tuple(references or ()),
        language_model=language_model,
        approve=approve,
        sandbox=sandbox,
        jobs=jobs,
        place=place,
        cancel_jobs=cancel_jobs,
        track=track,
    )
    if dry_run:
        command.check(request)
        return show(plan, settled, request.goal[1])
    return command.start(request)


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
    sandbox: Annotated[
        options.Wish | None, typer.Option(help=f"{options.SANDBOX[:-1]}; by default as the study began.")
    ] = None,
    jobs: options.Jobs = None,
    cancel_jobs: options.CancelJobs = False,
    track: options.Track = None,
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
        track=track,
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

    raise typer.Exit(0 if audit.audit(path, results) else 1)


@app.command()
def doctor(
    model: options.Model = "tiny-lm",
    hook: options.Hook = None,
    evals: Annotated[str, typer.Option(help="quick, standard, full, or names with commas between.")] = "full",
    d_sae: Annotated[int | None, typer.Option(min=1, help="Latents of a study, whose needs are shown.")] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="Training tokens, likewise.")] = None,
) -> None:
    """Show which evaluations can run here, and what a study needs.

    For the others it says what is missing. Exit code 1 if one cannot run, 2 if a study does not fit.
    """
    from agent.commands import doctor
    from agent.commands.study_settings import settle_alone
    from agent.lab.evaluation import catalogue

    catalogue.parse_evals(evals)  # an unknown name is refused at once
    given = {"model": model, "hook_name": hook, "d_sae": d_sae, "tokens": tokens}
    fixed = settle_alone({name: value for name, value in given.items() if value is not None})
    raise typer.Exit(doctor.show(fixed, evals))


@app.command()
def cache(
    clear: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND",
            help="Delete activations, baselines, evaluation, references, texts, worlds or all; may be given again.",
        ),
    ] = None,
    prune: Annotated[
        float | None, typer.Option(min=0, metavar="GB", help="Delete what was used longest ago, down to so much.")
    ] = None,
) -> None:
    """Show, clear or prune what is cached.

    The cache lies under SAE_AGENT_CACHE, by default in the user's cache folder.
    """
    from agent.commands import cache

    if clear and prune is not None:
        raise UserError("--clear deletes by kind, and --prune by age: give one of them")
    if clear:
        cache.clear(clear)
    elif prune is not None:
        cache.prune(prune)
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


def _fail(message: str, code: int) -> None:
    from agent.lab.visible import one_line

    print(f"error: {one_line(message)}", file=sys.stderr)
    sys.exit(code)
