"""Errors of the evaluate room."""

from mkd_fast.checks.wording import type_error, value_error


def nothing_to_predict() -> ValueError:
    """No batches."""
    return value_error(
        "predict",
        "batches must hold at least one sample",
        "none",
        "An iterator that was read before is empty: pass a list, or make it anew.",
    )


def sample_predicted_twice(sample_id: int) -> ValueError:
    """Two predictions for one sample."""
    return value_error(
        "predict",
        "batches must hold each sample once",
        f"sample id {sample_id} twice",
        "Predict each text in a call of its own: sample ids are row numbers.",
    )


def nan_logits(sample_ids: list[int], num_samples: int) -> ValueError:
    """A class cannot be chosen among NaN."""
    return value_error(
        "predict",
        "logits must be numbers",
        f"NaN for {num_samples} samples, the first of them {sample_ids}",
        "The model's weights are broken: go back to a checkpoint from before the loss diverged.",
    )


def classes_not_integers(argument: str, dtype: object) -> TypeError:
    """Probabilities or names where class numbers belong."""
    return type_error(
        "score_languages",
        f"{argument} must hold class numbers, integers",
        f"{dtype}",
        "Take the argmax of the logits first.",
    )


def lengths_differ(
    predicted: tuple[int, ...], true: tuple[int, ...], num_languages: int
) -> ValueError:
    """Predictions, truths and languages do not go together."""
    return value_error(
        "score_languages",
        "predicted, true and languages must have one entry for each sample",
        f"shapes {predicted}, {true} and {num_languages} languages",
        "Take the languages of the rows that predictions.sample_ids names.",
    )


def tags_differ_in_number(num_predicted: int, num_true: int, num_languages: int) -> ValueError:
    """A word without a predicted or a true tag."""
    return value_error(
        "score_spans",
        "predicted and true must have a tag for every word of every sentence",
        f"{num_predicted} and {num_true} sentences, {num_languages} languages, or other lengths",
        "A word that has no token is predicted as 'O'.",
    )


def no_token_to_score(model: str) -> ValueError:
    """Samples whose tokens the student has all dropped, or that have none."""
    return value_error(
        "score_language_model",
        "the test must have a token to be found that the student's vocabulary has",
        f"none for {model!r}",
        'Name text of it in data.vocabulary_text, or set student.vocabulary = "all".',
    )


def nothing_to_score(model: str) -> ValueError:
    """No samples."""
    return value_error(
        "score_languages",
        "there must be at least one test sample",
        f"none for {model!r}",
        "Check the test split.",
    )


def malformed_scores(fault: Exception) -> ValueError:
    """Not what to_dict wrote."""
    return value_error(
        "ModelScores.from_dict",
        "scores must have the fields model, seen and unseen as to_dict writes them",
        f"{type(fault).__name__}: {fault}",
        "Delete the scores file and evaluate again.",
    )


def models_named_alike(names: list[str]) -> ValueError:
    """Two columns of one name."""
    return value_error(
        "report",
        "models must have names of their own",
        f"{names}",
        "Rename one of those that share a name.",
    )


def not_a_report_csv(path: object, found: list[str]) -> ValueError:
    """Not a file that write_report wrote."""
    return value_error(
        "markdown_from_csv",
        f"{path} must have the columns of languages.csv or summary.csv",
        f"{found}",
        "Pass a file that write_report wrote.",
    )


def block_markers(name: str, num_begin: int, num_end: int) -> ValueError:
    """The place for a generated block is missing or ambiguous."""
    return value_error(
        "splice_block",
        f"the text must hold '<!-- begin: {name} -->' and after it '<!-- end: {name} -->', once",
        f"{num_begin} begin and {num_end} end markers, or the end before the beginning",
        "Put the two markers where the generated block belongs.",
    )


def block_out_of_date(path: object, name: str) -> ValueError:
    """The file was not regenerated."""
    return value_error(
        "check_block",
        f"block {name!r} of {path} must be what its source generates",
        "other text",
        "Call update_block and commit the result.",
    )
