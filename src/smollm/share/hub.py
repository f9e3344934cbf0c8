"""A model repository on the Hugging Face hub, and its errors in one line each."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from smollm.errors import PipelineError
from smollm.share.card import CARD


class PublishError(PipelineError):
    """The Hugging Face hub cannot be reached, or refuses."""


class HubRepository:
    """A model repository on the Hugging Face hub, reached with the user's token."""

    def __init__(self, repository: str) -> None:
        """
        Raises:
            PublishError: there is no token, or the hub does not accept it or cannot be reached.
        """
        from huggingface_hub import HfApi

        self.repository, self.api = repository, HfApi()
        with self._errors():
            self.api.whoami()

    def licence(self) -> str | None:
        """The licence that the card which is there states."""
        from huggingface_hub import ModelCard

        with self._errors(), tempfile.TemporaryDirectory() as folder:
            if not self.api.file_exists(self.repository, CARD):
                return None
            card = self.api.hf_hub_download(self.repository, CARD, local_dir=folder)
            stated = ModelCard.load(card).data.get("license")
        return str(stated) if stated else None

    def publish(self, folder: Path, private: bool, message: str) -> str:
        """Make the repository unless it is there, and add the folder's files in one commit; return its address."""
        from huggingface_hub import CommitOperationAdd

        with self._errors():
            url = self.api.create_repo(self.repository, private=private or None, exist_ok=True)
            if private and not self.api.model_info(self.repository).private:
                raise PublishError(
                    f"{self.repository}: must be private as --private asks, got a public one that is there already; "
                    f"change it at {url}/settings, or leave out --private"
                )
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            additions = [CommitOperationAdd(file.relative_to(folder).as_posix(), file) for file in files]
            self.api.create_commit(self.repository, additions, commit_message=message)
        return str(url)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Give what the hub, or the way to it, raises as one line."""
        from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

        try:
            yield
        except PublishError:
            raise
        except LocalTokenNotFoundError:
            raise PublishError(
                f"no Hugging Face token; create one with write access at {self.api.endpoint}/settings/tokens, then "
                "`hf auth login`, or set HF_TOKEN"
            ) from None
        except OfflineModeIsEnabled:
            raise PublishError("HF_HUB_OFFLINE is set; unset it to publish") from None
        except HfHubHTTPError as error:
            status = error.response.status_code
            reason = " ".join((error.server_message or str(error)).split())
            raise PublishError(
                f"{self.repository}: the Hugging Face hub refused it with {status} ({reason:.300}); {_advice(status)}"
            ) from None
        except ValueError as error:  # of the card's head, or of the name
            reason = " ".join(str(error).split())
            raise PublishError(
                f"{self.repository}: the Hugging Face hub knows no such name or licence: {reason:.300}; correct REPO "
                "or --license"
            ) from None
        except Exception as error:  # the client's errors of a network have no common base
            reason = " ".join(str(error).split()) or type(error).__name__
            raise PublishError(
                f"cannot reach the Hugging Face hub ({self.api.endpoint}), {type(error).__name__}: {reason:.300}; "
                "check the network and HF_ENDPOINT"
            ) from None


def _advice(status: int) -> str:
    if status == 401:
        return "check the token: `hf auth whoami`, HF_TOKEN"
    if status in (403, 404):
        return "name an owner whose models your token may write (`hf auth whoami` lists them)"
    return "try again later"
