"""A finished student goes to the hub, with its card."""

from pathlib import Path

from mkd_fast.checks import sharing as checks
from mkd_fast.sharing.card import CARD, write_card
from mkd_fast.sharing.record import RunRecord

TRAINED = ("student", "scratch")


def finished_model(run: Path, model: str, function: str) -> tuple[RunRecord, Path]:
    """A finished run's record and the folder of one of its trained models.

    Raises:
        ValueError: no run, not finished, or without such a model.
    """
    record = RunRecord.read(run, function)
    if not record.is_finished:
        raise checks.unfinished_run(function, run, record.state)
    folder = record.model_folder(model) if model in TRAINED else None
    if folder is None:
        known = [name for name in TRAINED if record.model_folder(name)]
        raise checks.no_such_model(function, run, model, known)
    return record, folder


def push(run: Path, repo: str, *, model: str = "student", private: bool = False) -> str:
    """Upload a trained model's folder, and its card, to a repository of the hub.

    Args:
        run: folder of a finished run.
        repo: "name" or "owner/name"; it is made if need be.
        model: "student" or "scratch".
        private: of a repository that is made.

    Returns:
        Its address.

    Raises:
        ValueError: the run is not finished or has no such model, or the card is refused.
        RuntimeError: the hub cannot be reached, or does not let this user write there.
    """
    from huggingface_hub import HfApi, ModelCard
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    record, folder = finished_model(run, model, "push")
    write_card(record, model)
    ModelCard.load(folder / CARD)  # which refuses front matter that the hub would
    try:
        api = HfApi()
        made = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=made.repo_id,
            folder_path=folder,
            commit_message=f"{model} of {run.resolve().name}",
        )
    except (HfHubHTTPError, LocalTokenNotFoundError, OSError) as error:
        raise checks.not_pushed(repo, error) from error
    return str(made)
