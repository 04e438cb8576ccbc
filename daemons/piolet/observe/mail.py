"""The mail at a job's end: to whom, what it says, and handing it to the site's mail server.

To whom is the site's rule of the account's name; no user chooses an address, Slurm's --mail-user included. What users
choose (the job's name, what programs say) is cleaned of everything but printable letters, and is never in a header
but the subject. One server, one message, a bounded time.
"""

from __future__ import annotations

import email.utils
import re
import smtplib
from collections.abc import Sequence
from email.headerregistry import Address
from email.message import EmailMessage

from piolet.base.errors import ConfigError, ObserveError
from piolet.observe import jobtext
from piolet.observe.job import Job
from piolet.observe.jobsettings import MailConfig, server_of

_ACCOUNT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_ADDRESS = re.compile(r"([A-Za-z0-9_][A-Za-z0-9_.+-]{0,63})@([A-Za-z0-9][A-Za-z0-9.-]{0,252})")
_NAME_MOST, _LINES_MOST, _BODY_MOST = 60, 200, 60_000
_SMTP_S = 20.0
_GOOD = ("COMPLETED", "CANCELLED")


def why_none(job: Job, settings: MailConfig) -> str:
    """Return why no mail is sent of a job, '': one is."""
    if not settings.recipients:
        return "the site sends no mail ([mail] recipients)"
    if job.now.state in ("PENDING", "RUNNING", "COMPLETING", "SUSPENDED", "CONFIGURING", "REQUEUED"):
        return f"job {job.job} is {job.now.state}"
    if "_" in job.job and not settings.arrays:
        return "it is a task of an array ([mail] arrays)"
    ran = (job.now.end or 0.0) - (job.now.start or job.now.end or 0.0)
    if job.now.state in _GOOD and ran < 60 * settings.least_minutes:
        return f"it ran for less than {settings.least_minutes} min ([mail] least_minutes)"
    return ""


def message(job: Job, settings: MailConfig) -> EmailMessage:
    """Return the mail of a job. Raises ConfigError: the site's rule makes no address of the owner's name."""
    made = EmailMessage()
    made["From"] = _address(settings.sender, "[mail] sender")
    if _ACCOUNT.fullmatch(job.user) is None:
        raise ConfigError(f"the account of job {job.job} has a name that is in no address")
    made["To"] = _address(settings.recipients.replace("%u", job.user), "[mail] recipients")
    name = clean(job.name, _NAME_MOST)
    why = clean(job.why[0].sentence if job.why else "", 120)
    made["Subject"] = f"job {job.job} {name and f'({name}) '}{job.now.state}" + (f": {why}" if why else "")
    made["Date"] = email.utils.formatdate()
    made["Message-ID"] = email.utils.make_msgid(domain=made["From"].addresses[0].domain)
    made["Auto-Submitted"] = "auto-generated"
    made.set_content(body(jobtext.whole(job), settings.signature))
    return made


def body(lines: Sequence[str], signature: str) -> str:
    """Return the text: no line and no text longer than may be, and nothing that is not printable."""
    cut = [clean(line, 500, tabs=True) for line in lines[:_LINES_MOST]]
    text = "\n".join(cut)[:_BODY_MOST]
    return f"{text}\n" + (f"\n-- \n{signature}\n" if signature else "")


def clean(text: str, most: int, *, tabs: bool = False) -> str:
    """Return a text without line ends and what else is not printable."""
    kept = "".join(letter if letter.isprintable() or (tabs and letter == "\t") else "?" for letter in text)
    return kept if len(kept) <= most else f"{kept[: most - 1]}…"


def send(mail: EmailMessage, server: str) -> None:
    """Hand a mail to the server. Raises ObserveError: it does not take it."""
    host, port = server_of(server)
    try:
        with smtplib.SMTP(host, port, timeout=_SMTP_S) as channel:
            channel.send_message(mail)
    except (OSError, smtplib.SMTPException) as error:
        said = error.strerror if isinstance(error, OSError) and error.strerror else clean(str(error), 200)
        raise ObserveError(f"{server} does not take the mail to {mail['To']}: {said}", "[mail] server") from None


def _address(text: str, setting: str) -> Address:
    match = _ADDRESS.fullmatch(text)
    if match is None:
        raise ConfigError(f"{setting}: '{clean(text, 80)}' is no address", "write for example: %u@users.example.org")
    return Address(username=match[1], domain=match[2])
