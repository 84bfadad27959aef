"""Calls of AWS clients: one operation on queues or topics of a wrapped client, with a hop of the right kind round it.

For sync and asyncio clients alike: their overlays only say how an operation is run. Must not know SQS' and SNS' facts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self, cast

from botocore.exceptions import ClientError

from rtobs._hop import engine, leaf
from rtobs._hop.batch import Sends
from rtobs._hop.context import Context, attach, get_current
from rtobs._hop.runtime import runtime
from rtobs._journey import envelope
from rtobs._journey.message import Message, Trust
from rtobs._journey.record import Settlement
from rtobs.errors import UnsupportedError
from rtobs.integrations import _sqs
from rtobs.integrations._twin import Options, guarded, options_of

_REFUSED = frozenset({"BatchRequestTooLong", "InvalidMessageContents", "InvalidParameter", "InvalidParameterValue"})
"""Codes by which AWS refuses a message as it is; nothing of it has been accepted then."""
_MOST_TIGHT = 1024
_tight: dict[str, int] = {}
"""Size at which a queue or topic has refused a message that it took without our attribute."""
_SHAPE = frozenset({"MessageId", "ReceiptHandle", "Body"})
_TRUSTS: tuple[Trust, ...] = ("trusted", "link", "ignore")
_elsewhere = Options()
"""For messages that no wrapped client has handed out: no more trust than the least that ``wrap`` was told to have."""


def describe(native: object) -> Message | None:
    """Return what is known of a message: the dictionary that ReceiveMessage brought, or boto3's object round it.

    One that no wrapped client has handed out is known by its exact shape.
    """
    data: Any = native
    if not _sqs.is_dict(data):
        data = getattr(getattr(native, "meta", None), "data", None)
    if not _sqs.is_dict(data):
        return None
    found = leaf.known(data)
    if found is not None:
        return found if found.system == _sqs.SYSTEM else None
    return _sqs.describe(data, "", _elsewhere) if data.keys() >= _SHAPE else None


def client_of(native: Any, options: Options) -> Any:
    """Return the client to instrument: *native*, or the one below a resource of boto3; its messages are known then.

    Raises:
        UnsupportedError: a client of another service.
    """
    global _elsewhere  # noqa: PLW0603  it holds for the process
    client = getattr(native.meta, "client", None) or native
    service = service_of(client)
    if service not in ("sqs", "sns"):
        raise UnsupportedError(f"rtobs.wrap: AWS' {service!r} sends no messages; give a client of SQS or SNS")
    if _TRUSTS.index(options.trust) > _TRUSTS.index(_elsewhere.trust):
        _elsewhere = Options(trust=options.trust)
    for kind in (dict, *(cls for cls in type(native).__mro__ if cls.__module__ == "boto3.resources.base")):
        runtime.share(kind, describe)
    return client


def service_of(client: Any) -> str:
    """Return the name of the service that a client speaks to."""
    return str(client.meta.service_model.service_name)


# One operation -------------------------------------------------------------------------------------------------------


class Call:
    """``with call:`` round running ``call.params``; what ``call.result(response)`` returns is what the caller gets."""

    __slots__ = ("options", "params", "plain")

    def __init__(self, params: dict[str, Any], options: Options) -> None:
        self.params = params
        self.plain = params
        """The caller's own."""
        self.options = options

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End what was opened."""

    def refused(self, error: ClientError) -> bool:
        """Tell whether to try once more with ``again``, for the refusal may be our doing."""
        del error
        return False

    def again(self, response: Any) -> dict[str, Any] | None:
        """Return what to send once more, without us: all where there was no *response*, or what it says has failed."""
        del response
        return None

    def merged(self, response: Any, second: Any) -> Any:
        """Return one response for both tries."""
        return response if second is None else second

    def result(self, response: Any) -> Any:
        """Return what the caller gets."""
        return response


def _released(entry: Mapping[str, Any]) -> int:
    delay = _sqs.delay_of(entry)
    return runtime.wall_ns() + delay * 1_000_000_000 if delay else 0


class _Sending(Call):
    """One message, or a batch."""

    __slots__ = ("_body", "_entries", "_key", "_ours", "_place", "_sends", "_sizes")

    def __init__(self, params: dict[str, Any], options: Options, *, key: str, body: str, place: str) -> None:
        """*key*: the parameter that holds a batch; empty for one message."""
        super().__init__(params, options)
        self._key = key
        self._body = body
        self._place = place
        self._entries: Sequence[Mapping[str, Any]] = params[key] if key else (params,)
        self._sizes = [_sqs.size(entry, body) for entry in self._entries]
        self._ours: dict[int, dict[str, Any]] = {}
        queue = body == "MessageBody"
        self._sends = Sends(
            [
                Message(
                    _sqs.SYSTEM if queue else _sqs.TOPICS, _sqs.place(place), carrier=options.carrier, size=size,
                    address=str(entry.get("MessageGroupId", "")), release_ns=_released(entry),
                )
                for entry, size in zip(self._entries, self._sizes, strict=True)
            ]
        )  # fmt: skip

    def __enter__(self) -> Self:
        self._sends.__enter__()
        if self.options.carrier:
            self.params = guarded(self._carrying, self.params)
        return self

    def _carrying(self) -> dict[str, Any]:
        if len(self._sends.each) != len(self._entries):  # some of them leave without us
            return self.params
        total, tight = sum(self._sizes), _tight.get(self._place)
        entries: list[Mapping[str, Any]] = []
        for number, (entry, send) in enumerate(zip(self._entries, self._sends.each, strict=True)):
            old = _sqs.packed_in(entry)
            existing = envelope.unpack(old) if old is not None else {}
            room = _sqs.room(entry, total)
            if tight is not None:
                room = min(room, tight - self._sizes[number])
            headers = send.headers(existing, room)
            if headers != existing:
                entry = self._ours[number] = _sqs.carrying(entry, headers)  # noqa: PLW2901  what leaves in its place
                total += _sqs.size(entry, self._body) - self._sizes[number]
            entries.append(entry)
        return {**self.plain, self._key: entries} if self._key else dict(entries[0])

    def refused(self, error: ClientError) -> bool:
        return bool(self._ours) and _code(error.response.get("Error", {})) in _REFUSED

    def again(self, response: Any) -> dict[str, Any] | None:
        if response is None:
            return self.plain
        if not self._key or not self._ours:
            return None
        failed = {each["Id"] for each in response.get("Failed", ()) if _code(each) in _REFUSED}
        ours = {entry["Id"] for entry in self._ours.values()}
        entries = [entry for entry in self._entries if entry["Id"] in failed & ours]
        return {**self.plain, self._key: entries} if entries else None

    def merged(self, response: Any, second: Any) -> Any:
        if second is None:
            return response
        if response is None:
            if not self._key:
                self._remember(self._ours[0])
            return second
        taken = {each["Id"] for each in second.get("Successful", ())}
        for entry in self._ours.values():
            if entry["Id"] in taken:
                self._remember(entry)
        tried = {each["Id"] for each in (*second.get("Successful", ()), *second.get("Failed", ()))}
        failed = [each for each in response["Failed"] if each["Id"] not in tried]
        found = {
            **response,
            "Successful": [*response.get("Successful", ()), *second.get("Successful", ())],
            "Failed": [*failed, *second.get("Failed", ())],
        }
        return {key: value for key, value in found.items() if value or key == "ResponseMetadata"}

    def _remember(self, entry: Mapping[str, Any]) -> None:
        """Keep in mind at which size a message was refused that was taken without our attribute."""
        refused = _sqs.size(entry, self._body)
        if len(_tight) < _MOST_TIGHT or self._place in _tight:
            _tight[self._place] = min(_tight.get(self._place, refused), refused) - _sqs.AROUND

    def result(self, response: Any) -> Any:
        guarded(self._sent, None, response)
        return response

    def _sent(self, response: Any) -> None:
        """Note what the broker calls each message; one of a batch that it has not taken is a failed send."""
        by_id = {each["Id"]: each for key in ("Successful", "Failed") for each in response.get(key, ())}
        for number, (entry, send) in enumerate(zip(self._entries, list(self._sends.each), strict=True)):
            answer = by_id.get(entry.get("Id"), {}) if self._key else response
            if number in self._ours:
                _sqs.take_digest(answer, entry, self._ours[number])
            if send.record is not None and send.record.message is not None:
                send.record.message.id = str(answer.get("MessageId", ""))
            if "Code" in answer:
                self._sends.each.remove(send)
                send.__exit__(None, ClientError({"Error": answer}, "SendMessageBatch"), None)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sends.__exit__(kind, error, trace)


class _Receiving(Call):
    """ReceiveMessage: what it brings is known until a hop takes it, and its caller sees what he asked for."""

    __slots__ = ("_around", "_asked", "_begun", "_queue")

    def __init__(self, params: dict[str, Any], options: Options) -> None:
        super().__init__(params, options)
        self._queue = _sqs.place(params.get("QueueUrl"))
        self._asked = _sqs.asking(params)
        self.params = self._asked.params
        self._around: Context | None = None
        self._begun = 0

    def __enter__(self) -> Self:
        self._begun = leaf.now_ns()
        guarded(self._alone, None)
        return self

    def _alone(self) -> None:
        self._around = get_current()
        attach(Context({**self._around, **leaf.SUPPRESS}))  # a neighbour's span beside ours would say the same

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        guarded(self._back, None)

    def _back(self) -> None:
        around, self._around = self._around, None
        if around is not None:
            attach(around)

    def result(self, response: Any) -> Any:
        guarded(self._back, None)  # the receive hop is one of the caller's
        guarded(self._came, None, response)
        # Twice, for what is not taken out reaches the host.
        if not guarded(self._take_out, False, response):  # noqa: FBT003  "not done"
            guarded(self._take_out, False, response)  # noqa: FBT003  as above
        return response

    def _came(self, response: Any) -> None:
        found = [_sqs.describe(message, self._queue, self.options) for message in response.get("Messages", ())]
        for message in found:
            leaf.handed_out(message)
        leaf.receive(found, self._begun)

    def _take_out(self, response: Any) -> bool:
        for message in response.get("Messages", ()):
            _sqs.take_out(message, self._asked)
        return True


class _Settling(Call):
    """Deletions and changes of visibility: in the hop of one of the messages they name they settle it."""

    __slots__ = ("_failed", "_id", "_operation", "_settle")

    def __init__(self, params: dict[str, Any], options: Options, *, batch: bool, deletes: bool) -> None:
        super().__init__(params, options)
        entries: Sequence[Mapping[str, Any]] = params["Entries"] if batch else (params,)
        message, entry = _open_here(entries)
        operation: str = "ack"
        how: Settlement = "acked"
        self._operation = "DeleteMessageBatch" if deletes else "ChangeMessageVisibilityBatch"
        if not deletes:
            operation, how = ("nack", "requeued") if entry.get("VisibilityTimeout") == 0 else ("in_progress", "")
        self._id = entry.get("Id") if message is not None else None
        known = message or Message(_sqs.SYSTEM, _sqs.place(params.get("QueueUrl")))
        self._settle = leaf.Settle(operation, how, known)
        self._failed: ClientError | None = None

    def __enter__(self) -> Self:
        self._settle.__enter__()
        return self

    def result(self, response: Any) -> Any:
        guarded(self._look, None, response)
        return response

    def _look(self, response: Any) -> None:
        for each in response.get("Failed", ()):
            if each.get("Id") == self._id is not None:
                self._failed = ClientError({"Error": each}, self._operation)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._settle.__exit__(kind, error or self._failed, trace)


def _open_here(entries: Sequence[Mapping[str, Any]]) -> tuple[Message | None, Mapping[str, Any]]:
    """Return the message of the hop that is open here, and its entry, if it is among those that are settled."""
    record = engine.current()
    while record is not None:
        message: Any = record.message
        if message is not None and message.system == _sqs.SYSTEM and _sqs.is_dict(message.native):
            for entry in entries:
                if entry.get("ReceiptHandle") == message.native.get("ReceiptHandle"):
                    return message, entry
        record = record.parent
    return None, entries[0]


def _code(error: Mapping[str, Any]) -> str:
    return str(error.get("Code", "")).rpartition(".")[2]


# Which operation is what ---------------------------------------------------------------------------------------------


def _call(client: Any, operation: str, params: dict[str, Any]) -> Call | None:
    """Return what has to be round one operation; None where that is nothing of ours, or nothing that could be sent."""
    options, batch = options_of(client), operation.endswith("Batch")
    entries: Any = params.get("PublishBatchRequestEntries" if operation == "PublishBatch" else "Entries")
    place = params.get("QueueUrl") or params.get("TopicArn") or params.get("TargetArn")
    if type(place) is not str or (batch and not _are_entries(entries)):
        return None
    match operation.removesuffix("Batch"):
        case "SendMessage":
            return _Sending(params, options, key="Entries" if batch else "", body="MessageBody", place=place)
        case "Publish" if "/" not in place:  # else a device, and without any a phone: the last mile is a delivery
            return _Sending(
                params, options, key="PublishBatchRequestEntries" if batch else "", body="Message", place=place
            )
        case "ReceiveMessage":
            return _Receiving(params, options)
        case "DeleteMessage" | "ChangeMessageVisibility" as settling:
            return _Settling(params, options, batch=batch, deletes=settling == "DeleteMessage")
        case _:
            return None


def _are_entries(found: object) -> bool:
    entries: Any = cast("Any", found) if isinstance(found, list) else []
    return bool(entries) and all(_sqs.is_dict(entry) and type(entry.get("Id")) is str for entry in entries)


def run(client: Any, operation: str, make: Any, params: Any) -> Any:
    """Run one operation of a sync client by its own *make*."""
    found = guarded(_call, None, client, operation, params)
    if found is None:
        return make(operation, params)
    with found as call:
        try:
            response = make(operation, call.params)
        except ClientError as error:
            if not guarded(call.refused, False, error):  # noqa: FBT003  then it is not for us
                raise
            response = None
        rest = guarded(call.again, None, response)
        if rest is not None:
            try:
                second = make(operation, rest)
            except Exception:
                if response is None:
                    raise
                second = None
            response = guarded(call.merged, response or second, response, second)
        return guarded(call.result, response, response)


async def run_async(client: Any, operation: str, make: Any, params: Any) -> Any:
    """Run one operation of an asyncio client by its own *make*."""
    found = guarded(_call, None, client, operation, params)
    if found is None:
        return await make(operation, params)
    with found as call:
        try:
            response = await make(operation, call.params)
        except ClientError as error:
            if not guarded(call.refused, False, error):  # noqa: FBT003  then it is not for us
                raise
            response = None
        rest = guarded(call.again, None, response)
        if rest is not None:
            try:
                second = await make(operation, rest)
            except Exception:
                if response is None:
                    raise
                second = None
            response = guarded(call.merged, response or second, response, second)
        return guarded(call.result, response, response)
