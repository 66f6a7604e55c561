"""Token -> User: verified JWTs, scopes, and the middleware that closes everything under `/api/v1`.

Every route handler names the scope it needs (`@get(..., scope="orders:read")`); one that names none is refused.

    middleware    the Authorization header, and the scope that the handler names
    verifier      the token's signature and claims -> User and scopes
    jwks          an issuer's published keys: fetched at start, renewed in the background
    keys          the algorithms that a key may be used with; the forms of JWT_PUBLIC_KEY
"""

from temporal_api.auth.middleware import USER, APIRequest, Authenticate, CurrentUser
from temporal_api.auth.verifier import User, Verifier

__all__ = ["USER", "APIRequest", "Authenticate", "CurrentUser", "User", "Verifier"]
