"""Token -> User: verified JWTs, scopes, and the middleware that closes everything under `/api/v1`.

Every route handler names the scope it needs (`@get(..., scope="orders:read")`); one that names none is refused.

    middleware    the Authorization header, and the scope that the handler names
    verifier      the token's signature and claims -> User and scopes
    jwks          an issuer's published keys: asked at start, renewed, never waited for in vain
    keys          which algorithms a key may be used with; JWT_PUBLIC_KEY in each of its forms
    refusals      little for the caller, the real reason for the operator's log
"""

from temporal_api.auth.middleware import USER, APIRequest, Authenticate, CurrentUser
from temporal_api.auth.verifier import User, Verifier

__all__ = ["USER", "APIRequest", "Authenticate", "CurrentUser", "User", "Verifier"]
