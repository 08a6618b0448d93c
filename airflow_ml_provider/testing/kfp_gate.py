"""Who asks, and how often: users by header or token, their rights, and the rate of the server's own Kubernetes client."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping

from airflow_ml_provider.testing.kfp_answers import KfpError, internal
from airflow_ml_provider.testing.kfp_store import Store
from airflow_ml_provider.testing.kfp_values import Answer, Request

HEADER = "kubeflow-userid"
NOBODY = "Failed to check authorization. User identity is empty in the request header"
NO_IDENTITY = "Request header error: there is no user identity header."
NO_HEADER = f"Unauthenticated: {NO_IDENTITY}: {NO_IDENTITY}"
NO_BEARER = "Header 'Authorization' is incorrectly formatted. Expected prefix 'Bearer '"
REVIEWS = "https://kubernetes.example:6443/apis"
REFUSED = "dial tcp kubernetes.example:6443: connect: connection refused"
HANGS = "net/http: TLS handshake timeout"
READ = frozenset({"get", "list"})
BURST = 2.0

Rights = Mapping[str, Mapping[str, str] | Iterable[str]]


class Gate:
    """
    Stands before the server.

    :param store: The tables.
    :param tokens: Accepted tokens, with or without the user's name.
    :param rights: Namespaces of each user, with ``edit`` or ``view``; None lets everybody do everything.
    :param rate: Requests per second, None for no limit.
    """

    def __init__(
        self, store: Store, tokens: Mapping[str, str] | Iterable[str] | None, rights: Rights | None, rate: float | None
    ) -> None:
        self.store = store
        self.asks = tokens is not None or store.multi_user
        named = tokens if isinstance(tokens, Mapping) else dict.fromkeys(tokens or (), "user@example.com")
        self.tokens: dict[str, str] = dict(named)
        self.refused: dict[str, str] = {}
        self.rights = None if rights is None else {user: _levels(each) for user, each in rights.items()}
        self.rate = rate
        self.guard = threading.Lock()
        self.turn = 0.0

    def check(self, request: Request, wait: Callable[[float], object], now: Callable[[], float]) -> Answer | None:
        """
        Hold a request up, and say whether it may pass.

        :param request: The request.
        :param wait: Waits for a number of seconds.
        :param now: A clock that nobody turns.
        :return: A refusal, None to let it pass.
        """
        if request.path.endswith("/healthz"):
            return None
        if self.rate is not None and (self.store.multi_user or request.method == "POST"):
            wait(self.pause(now()))
        if self.asks and not self.store.multi_user and self.by_token(request) is None:
            return KfpError(16, f"Unauthenticated: {NOBODY}", NOBODY).answer()
        return None

    def pause(self, now: float) -> float:
        """
        Take a turn.

        :param now: Seconds of a clock that nobody turns.
        :return: Seconds to wait for it.
        """
        with self.guard:
            self.turn = max(self.turn, now - BURST) + 1 / (self.rate or 1)
            return max(0.0, self.turn - now)

    def by_token(self, request: Request) -> str | None:
        """
        Tell whose token a request carries.

        :param request: The request.
        :return: Name of the user, None for no token or a bad one.
        """
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        return self.tokens.get(token) if kind.lower() == "bearer" and token not in self.refused else None

    def user(self, request: Request, prefix: str) -> str:
        """
        Tell who asks, in multi-user mode; the header wins over the token.

        :param request: The request.
        :param prefix: What is being done.
        :return: Name of the user.
        :raises KfpError: 401, also while Kubernetes cannot be asked about a token.
        """
        if request.headers.get(HEADER):
            return request.headers[HEADER]
        sent = request.headers.get("authorization")
        found = self.by_token(request)
        if found is not None and not self.store.lost & {"kubernetes", "kubernetes-hanging"}:
            return found
        why = NO_HEADER if sent is None else f"[{NO_HEADER}, {self.why(sent)}]"
        raise KfpError(16, f"{prefix}Unauthenticated: {NOBODY}: {why}", NOBODY)

    def why(self, sent: str) -> str:
        """
        Tell why a header is no good.

        :param sent: The ``Authorization`` header.
        :return: The server's words.
        """
        if not sent.startswith("Bearer "):
            return f"BadRequestError: {NO_BEARER}: {NO_BEARER}"
        if self.store.lost & {"kubernetes", "kubernetes-hanging"}:
            failed = (
                f'Failed to review the token provided: Post "{REVIEWS}/authentication.k8s.io/v1/tokenreviews": {self.trouble()}'
            )
            return f"Authentication failure: Unauthenticated: Request header error: {failed}"
        reason = self.refused.get(sent.removeprefix("Bearer "), "invalid bearer token")
        review = f"Review.Status.Authenticated is false. Error {reason}: Failed to authenticate token review"
        return f"Authentication failure: Unauthenticated: {review}"

    def trouble(self) -> str:
        """
        Tell what is wrong with Kubernetes.

        :return: The words of the client.
        """
        return REFUSED if "kubernetes" in self.store.lost else HANGS

    def allow(self, request: Request, prefix: str, resource: str, verb: str, namespace: str, name: str = "") -> None:
        """
        Check a right.

        :param request: The request.
        :param prefix: What is being done.
        :param resource: ``runs`` and so on.
        :param verb: ``get`` and so on.
        :param namespace: Where.
        :param name: Of what.
        :raises KfpError: 401, 403; 500 or 503 while Kubernetes cannot be asked.
        """
        user = self.user(request, prefix)
        attributes = (
            f"Namespace:{namespace},Verb:{verb},Group:pipelines.kubeflow.org,Version:v1beta1,Resource:{resource},Subresource:"
        )
        asked = f"(request: &ResourceAttributes{{{attributes},Name:{name},FieldSelector:nil,LabelSelector:nil,}})"
        review = f"Failed to create SubjectAccessReview for user '{user}' {asked}"
        post = f'Post "{REVIEWS}/authorization.k8s.io/v1/subjectaccessreviews": {self.trouble()}'
        if "kubernetes" in self.store.lost:
            raise internal(f"{prefix}InternalServerError: {review}: {post}")
        if "kubernetes-hanging" in self.store.lost:
            raise KfpError(14, f"{prefix}ServiceUnavailable: {review} - try again later: {post}", "Service unavailable")
        if self.rights is None:
            return
        level = self.rights.get(user, {}).get(namespace)
        if level is None or (level == "view" and verb not in READ):
            short = f"User '{user}' is not authorized with reason:  {asked}"
            raise KfpError(7, f"{prefix}PermissionDenied: {short}: Unauthorized access", short)


def _levels(given: Mapping[str, str] | Iterable[str]) -> dict[str, str]:
    return dict(given) if isinstance(given, Mapping) else dict.fromkeys(given, "edit")
