// What the codes of errors mean, in plain words. docs/ERRORS.md has more; a test compares the codes.

/** By code: its kind (quota: 429; refused: 503, the service could not now; caller: other 4xx; service: other 5xx), and what it means. */
export const ERROR_WORDS = {
  "rate-limited": ["quota", "A caller was over its quota"],
  overloaded: ["refused", "Too much work was waiting"],
  "too-many-connections": ["refused", "Too many connections were open"],
  draining: ["refused", "The service was shutting down"],
  "model-unavailable": ["refused", "The model could not be loaded"],
  "lane-lost": ["refused", "An inference thread was lost and replaced"],
  "keys-unavailable": ["refused", "The issuer's keys could not be fetched"],
  "no-replica": ["refused", "No replica was available"],
  "invalid-input": ["caller", "The request was not valid"],
  "bad-request": ["caller", "The request was not valid"],
  "empty-input": ["caller", "A list of texts was empty"],
  "malformed-request": ["caller", "The request was not valid HTTP"],
  "unknown-model": ["caller", "No model has that name"],
  unauthenticated: ["caller", "The key was missing, unknown or expired"],
  "missing-scope": ["caller", "The key lacks the permission"],
  "local-only": ["caller", "Allowed from the same machine only"],
  "model-not-allowed": ["caller", "The model is not allowed here"],
  "metrics-disabled": ["caller", "Metrics are turned off"],
  "not-found": ["caller", "No route has that address"],
  "method-not-allowed": ["caller", "The route does not accept that method"],
  "not-acceptable": ["caller", "The requested format is not available"],
  "request-too-slow": ["caller", "The request did not arrive in time"],
  "fingerprint-mismatch": ["caller", "The model is not the one of the caller's index"],
  "content-too-large": ["caller", "The request body was too large"],
  "not-json": ["caller", "The body was not plain JSON"],
  "misdirected-request": ["caller", "The URL named a host that is not served"],
  "headers-too-large": ["caller", "The headers were too large"],
  "caller-left": ["caller", "The caller left before the answer"],
  "inference-failed": ["service", "The model failed on an input"],
  "invalid-vector": ["service", "The model returned an unusable vector"],
  "internal-error": ["service", "A bug; the log has the details"],
  "deadline-exceeded": ["service", "The work took longer than its time limit"],
  "bad-gateway": ["service", "No replica answered the proxy"],
};

/** For those that are refused: why, and what an operator can do. */
export const REFUSAL_ADVICE = {
  overloaded: "Add cores or replicas, or let clients retry after Retry-After. The limit is MAX_QUEUE_SECONDS.",
  "too-many-connections": "Raise MAX_CONNECTIONS, or MAX_CONNECTIONS_PER_ADDRESS behind a proxy.",
  draining: "Usual during a restart: send requests to another replica.",
  "model-unavailable": "The log's event model_load_failed has the reason.",
  "lane-lost": "If it repeats, check the log's event lane_died.",
  "keys-unavailable": "Check that JWT_JWKS_URL can be reached.",
  "rate-limited": "Callers wait for Retry-After; quotas are RATE_LIMIT_REQUESTS and RATE_LIMIT_TOKENS.",
};

export function kindOf(code) {
  return ERROR_WORDS[code]?.[0] ?? "service";
}

export function wordsOf(code) {
  return ERROR_WORDS[code]?.[1] ?? "An error that this page does not know";
}
