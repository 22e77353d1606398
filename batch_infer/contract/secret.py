"""Owns the syntax of references to secrets, and what counts as a secret by mistake. Does not resolve references.

A reference is text that names a place, and may stand in settings, plans and logs:

    env:NAME               an environment variable
    file:/absolute/path    a file that holds nothing but the secret
    databricks:scope/key   a Databricks secret scope and a key in it
    databricks-sdk:PROFILE what databricks-sdk authenticates with: a profile of its configuration file, or `default`
    google:default         Google's application default credentials, by google-auth
    aws:PROFILE            AWS credentials that sign requests, by botocore: a profile, or `default`

A secret itself never belongs there (Spark writes settings and literals into plans and event logs), so text that looks
like one is refused, and no message of this module repeats what it was given.

On driver and workers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

from batch_infer.contract.errors import ConfigError

FORMS = "env:NAME, file:/absolute/path, databricks:scope/key, databricks-sdk:PROFILE, google:default or aws:PROFILE"
"""Forms of a reference, for messages."""
SHORT_LIVED = ("databricks-sdk", "google", "aws")
"""Schemes whose secrets change while a query runs: they are asked for again and again."""

_HOW = (
    f"Write a reference to it instead: {FORMS}. "
    "For example, set the environment variable OPENAI_API_KEY and write 'env:OPENAI_API_KEY'."
)

_KNOWN_SHAPES = re.compile(
    r"""^\s*(?:
        (?i:bearer|basic|token)\s+\S             # an Authorization header's value
      | -----BEGIN\s                             # a PEM block
      | sk-[A-Za-z0-9]                           # OpenAI, Anthropic, OpenRouter and many that follow them
      | [sr]k_(?:live|test)_                     # Stripe
      | dapi[0-9a-f]{8}                          # Databricks: personal access token
      | dose[0-9a-f]{8}                          # Databricks: OAuth secret
      | AIza[0-9A-Za-z_-]{8}                     # Google
      | ya29\.                                   # Google: OAuth
      | gh[pousr]_[A-Za-z0-9]{8}                 # GitHub
      | github_pat_[A-Za-z0-9]{8}
      | glpat-                                   # GitLab
      | xox[a-z]-                                # Slack
      | xai-[A-Za-z0-9]{8}
      | gsk_[A-Za-z0-9]{16}                      # Groq
      | hf_[A-Za-z0-9]{16}                       # Hugging Face
      | r8_[A-Za-z0-9]{16}                       # Replicate
      | nvapi-
      | pplx-
      | A[KS]IA[0-9A-Z]{12}                      # AWS
      | eyJ[A-Za-z0-9_-]{8}                      # a JSON web token
    )""",
    re.VERBOSE,
)

_HEX = re.compile(r"^[0-9a-f]{32,}$", re.IGNORECASE)
_TOKEN_ALPHABET = re.compile(r"^[A-Za-z0-9+/=_.~-]+$")
_SEPARATORS = re.compile(r"[+/=_.~-]")

MIN_RANDOM_CHARS = 24
"""Shorter text is never taken for random: 24 characters of base 62 are 143 bits, the least that vendors issue."""

MIN_LOCATOR_CHARS = 20
"""Shorter names after a scheme are taken as names, whatever their shape: `databricks:prod/sk-prod` is one. No vendor
listed above issues shorter keys."""

MIN_CLASS_CHANGES = 0.25
"""Share of neighbours that change between digit, lower and upper case (`Ab` counts as a word's beginning, not as a
change). Random base 62 has 0.45 on average; names like `myServiceOpenAiKeyProduction2024` stay under 0.2."""


def is_reference(text: str) -> bool:
    """Whether text begins as a reference does; `SecretReference.parse` says whether it is a good one."""
    scheme, colon, _ = text.strip().partition(":")
    return bool(colon) and scheme in _CHECKS


def looks_like_a_secret(text: str) -> bool:
    """Whether `text` has the shape of a credential: a vendor's prefix, a header's value, or long random characters.

    A guess that serves to refuse with a helpful message. It errs towards `False` for words and for paths.
    """
    if _KNOWN_SHAPES.match(text):
        return True
    text = text.strip()
    if not _TOKEN_ALPHABET.match(text):
        return False
    joined = _SEPARATORS.sub("", text)
    if _HEX.match(joined):
        return sum(character.isdigit() for character in joined) >= 4
    if len(joined) < MIN_RANDOM_CHARS or sum(character.isdigit() for character in joined) < 2:
        return False
    kinds = [_kind(character) for character in joined]
    changes = sum(a != b and (a, b) != ("upper", "lower") for a, b in pairwise(kinds))
    return changes / (len(joined) - 1) >= MIN_CLASS_CHANGES


def _kind(character: str) -> str:
    if character.isdigit():
        return "digit"
    return "upper" if character.isupper() else "lower"


@dataclass(frozen=True, slots=True, repr=False)
class SecretReference:
    """Where a secret is, never the secret. Frozen, hashable and picklable; safe in plans, settings and logs.

    Make one with `parse`; the constructor checks the same rules.
    """

    scheme: str
    """`env`, `file`, `databricks`, `databricks-sdk`, `google` or `aws`."""
    locator: str
    """The variable's name, the absolute path, `scope/key`, or the profile."""

    def __post_init__(self) -> None:
        check = _CHECKS.get(self.scheme)
        if check is None:
            raise ConfigError(f"this is not a reference to a secret (its text is not shown). {_HOW}")
        check(self.locator)

    @classmethod
    def parse(cls, text: str) -> SecretReference:
        """Reads a reference. White space around it is dropped.

        Raises:
            ConfigError: `text` is not a reference, or has the shape of a secret. The message says what to write
                instead, and never holds any part of `text`.
        """
        if not isinstance(text, str):
            raise ConfigError(f"a reference to a secret must be text, not {type(text).__name__}. {_HOW}")
        scheme, colon, locator = text.strip().partition(":")
        if colon and scheme in _CHECKS:
            return cls(scheme, locator)
        if looks_like_a_secret(text):
            raise ConfigError(
                "this looks like a secret itself; it would be readable in query plans and event logs, so it is "
                f"refused (its text is not shown). {_HOW} If it was a real key, consider it exposed: replace it."
            )
        raise ConfigError(
            f"this is not a reference to a secret (its text is not shown). {_HOW} "
            "If it is the name of an environment variable, put 'env:' before it."
        )

    @property
    def scope_and_key(self) -> tuple[str, str]:
        """The two halves of a `databricks:` reference's locator."""
        scope, _, key = self.locator.partition("/")
        return scope, key

    def __str__(self) -> str:
        return f"{self.scheme}:{self.locator}"

    def __repr__(self) -> str:
        return f"SecretReference({str(self)!r})"


_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_DATABRICKS_NAME = re.compile(r"[A-Za-z0-9_.@ -]{1,128}\Z")


def _check_env(locator: str) -> None:
    _refuse_secret(locator, "after 'env:'", "the name of an environment variable, as in 'env:OPENAI_API_KEY'")
    if not _ENV_NAME.match(locator):
        raise ConfigError(
            "what follows 'env:' is not the name of an environment variable (letters, digits and '_', not beginning "
            "with a digit; the text is not shown). Write for example 'env:OPENAI_API_KEY'."
        )


def _check_file(locator: str) -> None:
    if not locator.startswith("/") or "\0" in locator or "\n" in locator:
        _refuse_secret(locator, "after 'file:'", "an absolute path, as in 'file:/run/secrets/openai'")
        raise ConfigError(
            "what follows 'file:' is not an absolute path (the text is not shown). Workers run in other directories, "
            "so write it from the root, as in 'file:/run/secrets/openai'."
        )


def _check_databricks(locator: str) -> None:
    scope, slash, key = locator.partition("/")
    for part in (locator, scope, key):
        _refuse_secret(part, "after 'databricks:'", "a scope and a key's name, as in 'databricks:my-scope/openai'")
    if not slash or not _DATABRICKS_NAME.match(scope) or not _DATABRICKS_NAME.match(key):
        raise ConfigError(
            "what follows 'databricks:' is not scope/key (up to 128 letters, digits, '-', '_', '.', '@' or spaces "
            "each; the text is not shown). Write for example 'databricks:my-scope/openai'."
        )


def _check_profile(scheme: str, profiles: str) -> Callable[[str], None]:
    def check(locator: str) -> None:
        _refuse_secret(locator, f"after '{scheme}:'", f"the name of a profile, as in '{scheme}:default'")
        if not _DATABRICKS_NAME.match(locator):
            raise ConfigError(
                f"what follows '{scheme}:' is not the name of a profile (the text is not shown). "
                f"Write '{scheme}:default'{profiles}."
            )

    return check


def _refuse_secret(text: str, where: str, instead: str) -> None:
    if len(text) >= MIN_LOCATOR_CHARS and looks_like_a_secret(text):
        raise ConfigError(
            f"what stands {where} looks like a secret itself, so it is refused (its text is not shown). "
            f"Write {instead}. If it was a real key, consider it exposed: replace it."
        )


_CHECKS: Mapping[str, Callable[[str], None]] = {
    "env": _check_env,
    "file": _check_file,
    "databricks": _check_databricks,
    "databricks-sdk": _check_profile("databricks-sdk", ", or a profile of ~/.databrickscfg"),
    "google": _check_profile("google", ""),
    "aws": _check_profile("aws", ", or a profile of ~/.aws/config"),
}
