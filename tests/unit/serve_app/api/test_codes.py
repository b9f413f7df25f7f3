"""What is said of codes."""

from serve_app.api.codes import explanations


def test_every_refusal_and_every_failure_says_what_to_do() -> None:
    """In its remedy; or in its text, which then says more than what is wrong."""
    silent = [
        (code, meaning.detail)
        for code, explanation in explanations("http://api.test").items()
        for meaning in explanation.meanings
        if meaning.place != "wait_code" and not meaning.remedy and ". " not in meaning.detail
    ]
    assert silent == []
