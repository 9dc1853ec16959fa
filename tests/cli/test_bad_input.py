"""Bad input ends with exit code 2 and one line that says what, where and what to type; nothing is written."""

from __future__ import annotations

import json
import shlex
import shutil

import pytest

PAIR = {"prompt": "Name a fruit.", "chosen": "Apple.", "rejected": "Stone."}


def refused(ran, *parts):
    """The message, after checking everything that holds for all of them."""
    assert ran.code == 2, (ran.code, ran.err)
    assert ran.fault.startswith("alphapo: "), ran.err
    for part in parts:
        assert part in ran.fault
    return ran.fault


CONFIGURATION = [
    # a key that does not exist
    (
        "objective.shape.aplha=1",
        "'objective.shape.aplha'",
        "did you mean 'objective.shape.alpha'?",
        "alpha, convention",
    ),
    ("trainer.max_step=3", "'trainer.max_step'", "did you mean 'trainer.max_steps'?"),
    ("beta=1", "'beta'", "did you mean 'objective.beta'?"),
    ("bta=1", "'bta'", "did you mean 'objective.beta'?"),
    # a key elsewhere of that name, at any depth and from any group, before one beside it that is only similar
    (
        "objective.alpha=0.5",
        "'objective.alpha'",
        "did you mean 'objective.shape.alpha'?",
        "keys of objective: name, score",
    ),
    ("objective.aplha=0.5", "'objective.aplha'", "did you mean 'objective.shape.alpha'?"),
    ("shape.alpha=0.5", "'shape'", "did you mean 'objective.shape.alpha'?"),
    ("objective.shpe.alpha=0.5", "'objective.shpe'", "did you mean 'objective.shape.alpha'?"),
    ("alpha=0.5", "'alpha'", "did you mean 'objective.shape.alpha' or 'model.lora.alpha'?"),
    ("+alpha=0.5", "'alpha'", "did you mean 'objective.shape.alpha' or 'model.lora.alpha'?"),
    ("model.alpha=8", "'model.alpha'", "did you mean 'model.lora.alpha'?"),
    ("trainer.beta=1", "'trainer.beta'", "did you mean 'objective.beta'?"),
    ("objective.shape.beta=1", "'objective.shape.beta'", "did you mean 'objective.beta'?"),
    ("data.pairs=3", "'data.pairs'", "did you mean 'data.glassbox.pairs'?"),
    # by the end of its name, or its initials
    ("epochs=3", "'epochs'", "did you mean 'trainer.num_train_epochs'?"),
    ("objective.lr=1", "'objective.lr'", "did you mean 'trainer.learning_rate'?"),
    ("batch_size=3", "'batch_size'", "did you mean 'probe.batch_size' or 'trainer.per_device_train_batch_size'?"),
    # a parameter of a part that is not chosen
    (
        "objective=dpo objective.shape.alpha=1",
        "'identity' has no parameters; alpha is a parameter of objective/shape=power",
    ),
    ("objective=dpo objective.alpha=1", "'objective.alpha'; alpha is a parameter of", "objective/shape=power"),
    ("shape=power", "'shape'", "did you mean 'objective/shape'?"),
    # a group, or a key of the top, before a key that only ends so
    ("objectiv=dpo", "'objectiv'", "did you mean 'objective'?"),
    ("sed=3", "'sed'", "did you mean 'seed'?"),
    ("objective/shap=power", "'objective/shap'", "did you mean 'objective/shape'?"),
    ("+typo=3", "'typo'", "keys: objective, model, data"),
    ("++typo=3", "'typo'", "keys: objective, model, data"),
    ("+objective.typo=3", "'objective.typo'", "keys of objective: name, score"),
    ("model.load_in_4bit=true", "'model.load_in_4bit'; here it is model.quantization=nf4"),
    ("objective.beta.x=3", "'objective.beta.x'", "objective.beta holds a value"),
    ("objective/shape=identity objective.shape.alpha=1", "objective.shape.alpha", "'identity' has no parameters"),
    ("objective/link=hinge objective.link.dleta=1", "objective.link.dleta", "did you mean 'objective.link.delta'?"),
    # a choice that does not exist
    ("objective=alphap", "objective=alphap", "did you mean 'alphapo'?", "`alphapo objectives` lists them"),
    ("objective=null", "objective=null", "`alphapo objectives` lists them"),
    (
        "objective/shape=powr",
        "objective/shape=powr",
        "did you mean 'power'?",
        "choices: chi, clipped, identity, js, power, tanh",
    ),
    ("data=nope", "data=nope", "choices: alpaca_eval, glassbox, hh_rlhf, hub, jsonl, ultrafeedback"),
    ("experiment=nope", "experiment=nope", "quick"),
    ("data.source=file", "data.source=file", "did you mean 'files'?", "glassbox, files, hub"),
    ("trainer.lr_scheduler_type=cosin", "trainer.lr_scheduler_type=cosin", "did you mean 'cosine'?"),
    # a value of the wrong type
    ("objective.beta=abc", "objective.beta=abc", "must be a number"),
    ("objective.beta=true", "objective.beta=true", "must be a number"),
    ("objective.beta=[1]", "objective.beta=[1]", "must be a number"),
    ("objective.beta=null", "objective.beta=null", "must be a number"),
    ("objective.shape.alpha=abc", "objective.shape.alpha=abc", "must be a number"),
    ("objective.shape.alpha=null", "objective.shape.alpha=null", "must be a number"),
    ("trainer.max_steps=2.5", "trainer.max_steps=2.5", "must be a whole number"),
    ("seed=abc", "seed=abc", "must be a whole number"),
    ("trainer.bf16=maybe", "trainer.bf16=maybe", "must be true or false"),
    ("tracking.tags=a", "tracking.tags=a", "must be a list"),
    ("run.dir=null", "run.dir=null", "must be a text"),
    ("objective.shape=power", "objective.shape=power", "group of keys", "one is chosen by objective/shape=power"),
    # a value out of range
    ("objective.beta=-1", "objective.beta=-1", "above 0"),
    ("objective.beta=0", "objective.beta=0", "above 0"),
    ("objective.beta=nan", "objective.beta=nan", "finite"),
    ("objective.beta=1e400", "objective.beta=inf", "finite"),
    ("objective.shape.alpha=inf", "objective.shape.alpha=inf", "finite"),
    ("objective.gamma=nan", "objective.gamma=nan", "finite"),
    ("objective.label_smoothing=0.5", "objective.label_smoothing=0.5", "below 0.5"),
    ("objective.nll=-0.1", "objective.nll=-0.1", "at least 0"),
    ("seed=-1", "seed=-1", "at least 0"),
    ("seed=4294967296", "seed=4294967296", "below 4294967296"),  # numpy's generators take no more
    ("trainer.max_steps=99999999999999999999", "trainer.max_steps=9", "below"),
    ("trainer.threads=100000", "trainer.threads=100000", "at most"),  # the process would end for want of memory
    ("run.name=../out", "run.name=../out", "inside run.dir", "set run.dir"),
    ("run.name=..", "run.name=..", "inside run.dir"),
    ("run.name=.", "run.name=.", "inside run.dir"),
    ("run.name=/out", "run.name=/out", "inside run.dir"),
    ("data.limit=0", "data.limit=0", "at least 1"),
    ("trainer.max_steps=0", "trainer.max_steps=0", "-1"),
    ("probe.every=0", "probe.every=0", "at least 1"),
    # the embedded world's model or data with what is not its own
    ("model.path=./m", "model.path=./m: on which data? give data=...", "data=jsonl data.path=FILE"),
    ("model=from_scratch --print-config", "model=from_scratch: on which data? give data=..."),
    ("data=jsonl data.path=x.jsonl", "data=jsonl: which model? give model.path=DIRECTORY or model=from_scratch"),
    ("data.source=hub data.name=a/b", "data.source=hub: which model?"),
    ("model.path=./m data=jsonl trainer=glassbox", "trainer=glassbox: settings of the embedded world", "data=glassbox"),
    ("model.path=./m data=jsonl probe=glassbox", "probe=glassbox: settings of the embedded world", "another probe"),
    # what Hydra would take and do nothing with, or what belongs elsewhere
    ("hydra.run.dir=x", "hydra.run.dir=x", "run.dir"),
    ("hydra/job_logging=disabled", "hydra/job_logging=disabled", "run.dir"),
    ("~objective.beta", "~objective.beta", "cannot be deleted"),
    ("model@policy=glassbox", "model@policy=glassbox", "packages"),
    ("objective.shape.alpha=0,1", "objective.shape.alpha=0,1", "alphapo sweep objective.shape.alpha=0,1"),
    ("'seed=range(0,3)'", "seed=range(0,3)", "alphapo sweep"),
    ("'objective.shape.alpha=choice(0,1)'", "objective.shape.alpha=choice(0,1)", "alphapo sweep"),
    ("word", "'word'", "key=value"),
    ("objective=glob(*)", "objective=glob(*)", "list the choices"),
    ("data.path=a,b.jsonl", "alphapo sweep data.path=a,b.jsonl", "or as one text"),
    ("objective.gamma=1 objective.gamma_beta_ratio=0.1", "objective.gamma and objective.gamma_beta_ratio", "give one"),
    ("--json missing/x.json", "--json missing/x.json", "no such folder"),
    ("--config-dir missing", "--config-dir missing", "no such directory"),
    ("--nope", "--nope"),
]


@pytest.mark.parametrize("case", CONFIGURATION, ids=[c[0].replace("/", "-") for c in CONFIGURATION])
def test_configuration(case, alphapo, tmp_path):
    line, *parts = case
    ran = alphapo("train", *shlex.split(line))
    refused(ran, *parts)
    assert ran.out == ""
    assert list(tmp_path.iterdir()) == []


def test_all_values_out_of_range_are_told_at_once(alphapo):
    fault = refused(alphapo("train", "objective.beta=-1", "seed=-1", "trainer.warmup_ratio=2"))
    assert all(part in fault for part in ("objective.beta=-1", "seed=-1", "trainer.warmup_ratio=2"))


SWEEPS = [
    ("alpah", "sweep 'alpah'", "did you mean 'alpha'?", "alpha, alpha_everywhere, alpha_gamma, alpha_ratio, methods"),
    ("missing.yaml", "missing.yaml", "no such file"),
    ("seed=1", "nothing to sweep", "seed=0,1,2"),
    ("", "nothing to sweep", "alphapo sweep alpha"),
    ("alpha objective.shape.alpha=0,x", "objective.shape.alpha=x", "must be a number"),
    ("alpha objective.beta=1,-1", "objective.beta=-1", "above 0"),
    ("alpha objective.shape.aplha=0,1", "objective.shape.aplha", "did you mean 'objective.shape.alpha'?"),
    ("alpha model.path=a,b", "model.path=a: on which data? give data=..."),
    ("alpha data=hh_rlhf,ultrafeedback", "data=hh_rlhf: which model?"),
    ("objective.alpha=0,1", "'objective.alpha'", "did you mean 'objective.shape.alpha'?"),
    ("alpha=0,1", "'alpha'", "did you mean 'objective.shape.alpha' or 'model.lora.alpha'?"),
    ("objective.alpha=0", "'objective.alpha'", "did you mean 'objective.shape.alpha'?"),
    ("alpha objective.alpha=0", "'objective.alpha'", "did you mean 'objective.shape.alpha'?"),
    ("seed=0,1 gpus=1", "'gpus'", "did you mean 'launcher.gpus'?"),
    ("seed=0,1 max_cost=1", "'max_cost'", "did you mean 'judge.max_cost'?"),
    ("objective=simpo,dppo", "objective=dppo", "did you mean 'dpo'?"),
    ("alpha hydra.sweep.dir=x", "hydra.sweep.dir=x"),
    ("alpha --json missing/x.json", "missing/x.json", "no such folder"),
    ("objective.gamma=0.1,0.2 objective.gamma_beta_ratio=0.3", "objective.gamma and objective.gamma_beta_ratio"),
    ("'seed=range(3,0)'", "seed=range(3,0)", "no value"),
]


@pytest.mark.parametrize("case", SWEEPS, ids=[c[0] or "nothing" for c in SWEEPS])
def test_sweep(case, alphapo, tmp_path):
    line, *parts = case
    ran = alphapo("sweep", *shlex.split(line))
    refused(ran, *parts)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("grid: [1]", ["grid (key: values)"]),
        ("gird: {seed: 0,1}", ["'gird'", "did you mean 'grid'?"]),
        ("grid: {seed: 'range(0,3)'}\nbase: [objective=alphap]", ["objective=alphap", "did you mean 'alphapo'?"]),
        ("grid: {objective.shape.aplha: '0,1'}", ["objective.shape.aplha", "did you mean 'objective.shape.alpha'?"]),
        ("grid: {objective.alpha: '0,1'}", ["'objective.alpha'", "did you mean 'objective.shape.alpha'?"]),
        (
            "grid: {seed: '0,1'}\nbase: [objective.alpha=1]",
            ["'objective.alpha'", "did you mean 'objective.shape.alpha'?"],
        ),
        ("grid: {seed: '0,1'", ["own.yaml"]),
    ],
)
def test_sweep_file(text, parts, alphapo, tmp_path):
    (tmp_path / "own.yaml").write_text(text)
    refused(alphapo("sweep", "own.yaml"), *parts)
    assert [p.name for p in tmp_path.iterdir()] == ["own.yaml"]


@pytest.fixture
def inputs(tmp_path, shared_cache):
    """Files and models that are not as they should be, beside good ones."""
    folder = tmp_path / "in"
    folder.mkdir()

    def write(name, *lines):
        (folder / name).write_text("".join(f"{line}\n" for line in lines))

    good = json.dumps(PAIR)
    write("broken.jsonl", good, good, '{"prompt": ')
    write("no_rejected.jsonl", good, json.dumps({"prompt": "a", "chosen": "b"}))
    write("null_rejected.jsonl", good, json.dumps(PAIR | {"rejected": None}))
    write("number.jsonl", good, json.dumps(PAIR | {"chosen": 7}))
    write("list.jsonl", "[1, 2]")
    write("empty.jsonl")
    write("blank.jsonl", "", "  ")
    write("same.jsonl", json.dumps(PAIR | {"rejected": PAIR["chosen"]}))
    write("notes.txt", "text")
    foreign = {"chosen": "an apple , a pear", "rejected": "a carrot"}
    write("foreign.jsonl", *(json.dumps(foreign | {"prompt": f"Explain quantum number {i}"}) for i in range(9)))
    turns = {s: [{"role": "user", "content": "q"}, {"role": "assistant", "content": s}] for s in ("chosen", "rejected")}
    write("messages.jsonl", json.dumps(turns))
    (folder / "empty_folder").mkdir()
    (base,) = (shared_cache / "base").glob("[0-9a-f]*")

    def model(name, without=(), **replaced):
        shutil.copytree(base, folder / name)
        for file in without:
            (folder / name / file).unlink()
        for file, content in replaced.items():
            (folder / name / file.replace("__", ".")).write_text(content)

    model("good")
    model("no_weights", ["model.safetensors"])
    model("no_config", ["config.json"])
    model("no_tokenizer", ["tokenizer.json"])
    model("no_template", ["chat_template.jinja"])
    model("cut_weights", model__safetensors="garbage")
    model("cut_config", config__json="{")
    model("cut_index", model__safetensors__index__json="{")
    return folder


INPUTS = [
    (
        "data=jsonl data.path=in/brokn.jsonl model=glassbox",
        "in/brokn.jsonl: no such file",
        "did you mean 'broken.jsonl'?",
    ),
    (
        "data=jsonl data.path=nowhere/pairs.jsonl model=glassbox",
        "nowhere/pairs.jsonl: no such file",
        "nowhere does not exist",
    ),
    ("data=jsonl model=glassbox", "data.path is not set", "data.path=FILE"),
    ("data=jsonl data.path=in/broken.jsonl model=glassbox", "in/broken.jsonl: line 3", "broken JSON"),
    (
        "data=jsonl data.path=in/no_rejected.jsonl model=glassbox",
        "line 2",
        "column 'rejected' is missing",
        "prompt, chosen",
    ),
    ("data=jsonl data.path=in/null_rejected.jsonl model=glassbox", "line 2", "column 'rejected' is null"),
    ("data=jsonl data.path=in/number.jsonl model=glassbox", "line 2", "'chosen' is a number"),
    ("data=jsonl data.path=in/list.jsonl model=glassbox", "line 1", "JSON list", "prompt, chosen, rejected"),
    (
        "data=jsonl data.path=in/empty.jsonl model=glassbox",
        "in/empty.jsonl: holds no pairs",
        "prompt, chosen and rejected",
    ),
    ("data=jsonl data.path=in/blank.jsonl model=glassbox", "in/blank.jsonl: holds no pairs"),
    ("data=jsonl data.path=in/same.jsonl model=glassbox", "none of its 1 rows is usable", "1 identical"),
    ("data=jsonl data.path=in/empty_folder model=glassbox", "in/empty_folder: no data file in this folder", ".jsonl"),
    ("data=jsonl data.path=in/notes.txt model=glassbox", "in/notes.txt: unknown file type", ".jsonl"),
    (
        "data=jsonl data.path=in/foreign.jsonl model=glassbox",
        "the embedded base: does not know the data's words",
        "from_scratch",
    ),
    ("data=jsonl data.path=in/foreign.jsonl model.path=in/good", "in/good: does not know the data's words"),
    ("probe.samples=100000", "probe.samples=100000", "held-out prompts"),
    ("probe.pairs=100000", "probe.pairs=100000", "held-out prompts"),
    (
        "data=jsonl data.path=in/messages.jsonl data.eval_path=in/gone.jsonl model=glassbox",
        "in/gone.jsonl: no such file",
    ),
    ("data.path=in/foreign.jsonl", "data.path=in/foreign.jsonl is not read", "add data=jsonl"),
    ("data.name=some/where", "data.name=some/where is not read", "add data=hub"),
    ("data=hub model=glassbox", "data.name is not set", "data.name=OWNER/DATASET"),
    ("data=hub data.name=some/where model=glassbox", "hub data set 'some/where'", "data.path=FILE"),
    ("data=hh_rlhf model=glassbox", "hub data set 'Anthropic/hh-rlhf'", "data.path=FILE"),
    ("model.path=in/no_weights data=glassbox", "model.path=in/no_weights", "holds no weights", "*.safetensors"),
    ("model.path=in/no_config data=glassbox", "model.path=in/no_config", "no config.json"),
    (
        "model.path=in/no_tokenizer data=glassbox",
        "model.path=in/no_tokenizer",
        "no usable tokenizer",
        "copy its directory whole",
    ),
    ("model.path=in/cut_weights data=glassbox", "model.path=in/cut_weights", "no usable model"),
    ("model.path=in/cut_config data=glassbox", "model.path=in/cut_config", "config.json"),
    ("model.path=in/cut_index data=glassbox", "model.path=in/cut_index", "model.safetensors.index.json is damaged"),
    ("model.path=in/notes.txt data=glassbox", "model.path=in/notes.txt", "is a file"),
    ("model.path=./gone data=glassbox", "model.path=./gone: no such directory"),
    ("model.path=runs/gone data=glassbox", "model.path=runs/gone: no such directory"),
    ("model.path=some/where data=glassbox", "model.path=some/where", "hub", "local directory"),
    ("model=path data=glassbox", "model=path needs model.path="),
    ("model.path=in/no_template data=jsonl data.path=in/messages.jsonl", "chat template", "model.path"),
    ("model=from_scratch model.lora.r=4 data=glassbox", "model.lora.r", "model.path"),
    ("model=from_scratch model.scratch.hidden_size=17 data=glassbox", "hidden_size=17", "multiple"),
    ("model.lora.r=2 model.lora.target_modules=[nope]", "model.lora.target_modules", "q_proj"),
    ("model.lora.alpha=32", "model.lora.alpha=32", "add model.lora.r=16"),
    ("model.lora.r=2 model.lora.target_modules=[]", "model.lora.target_modules=[]", "names no layer"),
    ("objective=dpo model.reference=in/no_weights", "model.reference=in/no_weights", "holds no weights"),
    ("objective.shape.convention=papr", "objective.shape.convention=papr", "auto, paper or ratio"),
    ("trainer.optim=adamm", "trainer.optim=adamm", "adamw_torch"),
]


@pytest.mark.parametrize("case", INPUTS, ids=[c[0].replace("/", "-") for c in INPUTS])
def test_data_and_models(case, alphapo, tmp_path, inputs, tiny):
    line, *parts = case
    ran = alphapo("train", *tiny, *shlex.split(line))
    shown = [text for text in ran.err.splitlines() if text.startswith("alphapo: ")]
    assert ran.code == 2, ran.err
    assert len(shown) == 1
    assert "Traceback" not in ran.err
    for part in parts:
        assert part in shown[0]
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_a_sweep_over_bad_data_writes_nothing(alphapo, tmp_path, inputs, tiny):
    refused(
        alphapo(
            "sweep", "alpha", *tiny, "launcher.workers=0", "data=jsonl", "data.path=in/broken.jsonl", "model=glassbox"
        ),
        "in/broken.jsonl: line 3",
    )
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


LOSS = [
    ("gone.jsonl", "", "gone.jsonl: cannot be read"),
    (".", "", "cannot be read"),
    ("rows.jsonl", '{"chosen_logp": -1}\n{', "rows.jsonl: line 2"),
    ("rows.jsonl", '{"chosen_logp": -1}', "line 1: no 'rejected_logp'"),
    ("rows.jsonl", "", "no rows"),
    ("rows.jsonl", "[1]", "line 1"),
    ("rows.jsonl trainer.max_steps=3", "{}", "takes overrides of objective"),
    ("rows.jsonl objective.beta=-1", "{}", "objective.beta=-1"),
]


@pytest.mark.parametrize(("line", "content", "part"), LOSS)
def test_loss(line, content, part, alphapo, tmp_path):
    (tmp_path / "rows.jsonl").write_text(content)
    ran = alphapo("loss", *line.split())
    refused(ran, part)
    assert ran.out == ""


@pytest.mark.slow
def test_another_configuration_in_the_directory_of_a_run(alphapo, trained, snapshot):
    """The differing keys are named, nothing is touched; where `--replace` leads is tested with the run directory."""
    before = snapshot(trained.path)
    ran = alphapo("train", f"run.dir={trained.path.parent}", f"run.name={trained.path.name}", "seed=7")
    fault = refused(ran, str(trained.path), "seed", "--replace", "another run.name")
    assert "objective.beta" not in fault
    assert snapshot(trained.path) == before


def test_a_directory_that_is_not_a_run_is_left_alone(alphapo, tmp_path, tiny):
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "thesis.tex").write_text("x")
    for replace in ((), ("--replace",)):
        refused(alphapo("train", *tiny, "run.name=mine", *replace), "not a run directory", "another run.name")
    assert (tmp_path / "runs" / "mine" / "thesis.tex").read_text() == "x"


def test_a_sweep_asks_for_the_prompts_of_every_cell_first(alphapo, tmp_path, tiny):
    """A cell that shares its data with a good one is looked at all the same."""
    refused(
        alphapo("sweep", *tiny, "launcher.workers=0", "probe.samples=8,100000"),
        "probe.samples=100000",
        "held-out prompts",
    )
    assert not (tmp_path / "runs").exists()


def test_in_a_process_of_its_own(cli, tmp_path):
    """Exit code and streams as a shell sees them."""
    ran = cli("train", "objective.shape.aplha=1")
    refused(ran, "did you mean 'objective.shape.alpha'?")
    assert ran.out == ""
    assert list(tmp_path.iterdir()) == []


def test_an_objective_that_builds_on_one_that_is_not_there(alphapo, tmp_path):
    (tmp_path / "own" / "objective").mkdir(parents=True)
    (tmp_path / "own" / "objective" / "mine.yaml").write_text("defaults: [simpoo]\nname: mine\n")
    ran = alphapo("objectives", "--config-dir", "own")
    refused(ran, "mine.yaml: there is no objective 'simpoo'", "did you mean 'simpo'?")


def test_debug_shows_the_traceback(cli):
    ran = cli("train", "objective=alphap", "--debug")
    assert "Traceback" in ran.err
    assert "ConfigError" in ran.err
