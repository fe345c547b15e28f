"""The command line, a function a verb. Each imports what it needs when it is called.

Exit codes: 0 done; 1 the machine refused (disk, device, another process); 2 bad input; 130 interrupted.
"""

from __future__ import annotations

import dataclasses
import signal
import sys
from pathlib import Path
from typing import Annotated

try:
    import typer
except ModuleNotFoundError:
    sys.exit("error: typer is not installed here: pip install typer rich filelock, or run `make setup`")
from bench import verbs
from bench.importers.command import import_
from bench.verbs import OUT, Configs, Out

BAD_INPUT = {"ConfigError", "ResultsError"}
REFUSALS = {"JournalError", "WorkerDied", "Ended", "OSError", "DerivedDiffer", "NoServer", "Uncalibrated"}
REFUSALS |= {"NothingRefreshed"}

app = typer.Typer(
    name="bench",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Measure what a token costs to train and to serve, price it on every provider, test the claim.",
)
refreshed = typer.Typer(help="Prices of GPU-hours: refresh.", no_args_is_help=True)
app.add_typer(refreshed, name="prices")


@app.command()
def run(
    suite: Annotated[str, typer.Option(help="Suite key, or auto: quick on a CUDA GPU, smoke on a CPU.")] = "auto",
    budget: Annotated[str | None, typer.Option(help="Time budget such as 8m or 90s; default: the suite's own.")] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start a new run; by default a matching one is resumed.")
    ] = False,
    pack: Annotated[Path | None, typer.Option("--pack", help="Also pack the run folder as one .tar.gz here.")] = None,
    tensor_parallel: Annotated[
        int, typer.Option(min=1, help="Under torchrun: ranks that share each layer's matrices in training steps.")
    ] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and measure nothing.")] = False,
    out: Out = OUT,
    configs: Configs = None,
    endpoint: Annotated[
        str | None, typer.Option(help="Measure somebody's server instead: see `bench endpoint --help`.")
    ] = None,
) -> None:
    """Measure a suite: facts into --out/runs. Finished cells are never measured again."""
    assert endpoint is None, "main() sends it to the verb endpoint"
    from bench import crew, journal, options
    from bench import run as runner
    from bench.display import Display
    from bench.measure.worker import Worker

    options.use_configs(configs)
    world = crew.world()  # under torchrun one process of several: rank 0 leads, the others only measure along
    if world and world.rank > 0:
        return crew.follow(world, crew.open_store())
    display = Display()
    worker = crew.Crew(world, crew.open_store()) if world else Worker()
    try:
        chosen = runner.suite_for(suite, worker)
        if budget is not None:
            chosen = dataclasses.replace(chosen, budget_s=options.budget(budget))
        chosen = dataclasses.replace(chosen, tensor_parallel=tensor_parallel)
        if dry_run:
            facts = runner.facts_of(chosen, worker)
            display.planned(chosen, runner.cells_of(chosen, facts), set(), out)
            return
        outcome = runner.run(chosen, out, display, fresh=fresh, worker=worker)
    finally:
        display.close()
        worker.stop()
        if isinstance(worker, crew.Crew):
            worker.close()
    display.say(f"facts: {outcome.folder}")
    if pack:
        display.say(f"packed: {journal.pack(outcome.folder, pack)}")


@app.command()
def endpoint(
    url: Annotated[str, typer.Option("--endpoint", help="An OpenAI-compatible server: http://host:port/v1.")],
    gpu: Annotated[str, typer.Option(help="What it runs on: a key of `bench list gpus`, or cpu.")],
    num_gpus: Annotated[int, typer.Option(min=1, help="How many of them, whole deployment.")] = 1,
    workload: Annotated[str, typer.Option(help="chat, completion, ... a mix, or a serve workload.")] = "chat",
    trace: Annotated[
        list[Path] | None, typer.Option(help="Replay this trace file; WEKA: a folder, or again for more.")
    ] = None,
    max_concurrency: Annotated[str, typer.Option(help="Closed-loop loads such as 1,8,64.")] = "",
    request_rate: Annotated[str, typer.Option(help="Open-loop loads, requests a second, such as 0.5,2.")] = "",
    seconds: Annotated[float, typer.Option(min=1.0, help="Length of each load.")] = 60.0,
    served_model_name: Annotated[
        str | None, typer.Option(help="The server's name of the model. Default: its only one.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="A key of `bench list models`, where it is one of them.")] = None,
    precision: Annotated[str | None, typer.Option(help="Of its weights, such as fp8: recorded, not checked.")] = None,
    max_model_len: Annotated[
        int | None, typer.Option(min=2, help="Its context. Default: what it says, or the workload's.")
    ] = None,
    completions: Annotated[bool, typer.Option("--completions", help="/completions, not /chat/completions.")] = False,
    extra_body: Annotated[str, typer.Option(help="JSON for every request, such as '{\"ignore_eos\": true}'.")] = "{}",
    api_key_env: Annotated[str | None, typer.Option(help="The environment variable that holds the API key.")] = None,
    shards: Annotated[int, typer.Option(min=1, help="Processes of the client: one for each 2,000 streams.")] = 1,
    pack: Annotated[Path | None, typer.Option("--pack", help="Also pack the run folder as one .tar.gz here.")] = None,
    out: Out = OUT,
    configs: Configs = None,
) -> None:
    """Measure somebody's server under real traffic. `bench run --endpoint URL ...` is the same."""
    from bench import endpoint as server
    from bench import journal, options
    from bench.display import Display

    options.use_configs(configs)
    display = Display()
    asked = server.Asked(
        gpu=gpu,
        num_gpus=num_gpus,
        workload=workload,
        served_model_name=served_model_name,
        model=model,
        precision=precision,
        concurrencies=tuple(map(int, options.numbers("--max-concurrency", max_concurrency, whole=True))),
        rates_per_s=options.numbers("--request-rate", request_rate),
        trace=tuple(trace or ()),
        load_s=seconds,
        max_model_len=max_model_len,
        shards=shards,
    )
    there = server.address(url, completions=completions, api_key_env=api_key_env, extra_body=extra_body)
    folder, row, interrupted = server.run(there, asked, out, display)
    display.say(f"facts: {folder}")
    if pack:
        display.say(f"packed: {journal.pack(folder, pack)}")
    if interrupted:
        sys.exit(130)
    if row["status"] != "ok":
        sys.exit(f"error: {row['reason']}")
    display.say(f"prices: python -m bench report --run {folder}")


app.command(name="import")(import_)


for verb in (verbs.predict, verbs.price, verbs.claim, verbs.report):
    app.command()(verb)
refreshed.command()(verbs.refresh)


@app.command(name="list")
def list_(
    kind: Annotated[
        str | None, typer.Argument(help="models, gpus, providers, workloads, suites, claims, ops or formats.")
    ] = None,
    configs: Configs = None,
) -> None:
    """Everything there is: models, GPUs, providers, workloads, suites, claims, ops, formats."""
    from bench import catalogue, options

    options.use_configs(configs)
    catalogue.show(kind)


@app.command()
def tune(
    op: Annotated[list[str] | None, typer.Option("--op", help="This op only; again for more. Default: all.")] = None,
    budget: Annotated[str | None, typer.Option(help="Stop after this time, such as 8m; what is tuned stays.")] = None,
) -> None:
    """Try the kernels' launch candidates on this GPU and keep what is faster: results/local/tuning.csv, best.csv."""
    from bench import options
    from bench import tune as tuner

    tables = tuner.tune(op, options.budget(budget) if budget else None, print)
    print(*(f"table: {path}" for path in tables if path.is_file()), sep="\n")


@app.command()
def doctor() -> None:
    """What this machine is, which backends, ops and extras work here, and why one does not."""
    from bench import doctor as clinic

    clinic.show()


def main() -> None:
    """Run the command line; one line and an exit code for whatever the user can mend."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs start with it ignored
    arguments = sys.argv[1:]
    if arguments[:1] == ["run"] and any(part.partition("=")[0] == "--endpoint" for part in arguments):
        arguments[0] = "endpoint"
    try:
        code = app(arguments, standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except typer.Exit as end:
        code = end.exit_code
    except Exception as error:
        if hasattr(error, "show") and hasattr(error, "exit_code"):  # a wrong option: typer says which, and how
            error.show()
            sys.exit(error.exit_code)
        code = exit_code(error)
        if code is None:
            raise
        print(f"error: {error}", file=sys.stderr)
    if code == 130:  # some versions of typer answer an interrupt with this code instead of raising
        kept = (
            "finished cells are kept, the same command resumes" if arguments[:1] == ["run"] else "nothing was written"
        )
        print(f"interrupted; {kept}", file=sys.stderr)
    sys.exit(code or 0)


def exit_code(error: Exception) -> int | None:
    """2 for bad input, 1 for a machine that refuses, None for a bug."""
    if isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("bench"):
        return 1  # a package this half needs: its name is in the message
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return 2 if kinds & BAD_INPUT else 1 if kinds & REFUSALS else None


if __name__ == "__main__":
    main()
