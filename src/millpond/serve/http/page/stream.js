// One streamed chat completion: fetch, cut the bytes into server-sent events, hand out what is in them.
// Knows the wire, not the page.

/** What went wrong with a request. `retryAfter` is in seconds, `status` 0 when the server was not reached. */
export class RequestFailed extends Error {
  constructor(status, message, retryAfter = null) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

/**
 * Streams an answer.
 * @param body the request, without what streaming needs.
 * @param options key: API key or ""; signal: aborts; onChunk: called with {text, tokens, finish}.
 */
export async function streamChat(body, { key, signal, onChunk }) {
  const response = await reach("/v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) },
    body: JSON.stringify({
      ...body, stream: true, stream_options: { include_usage: true, continuous_usage_stats: true },
    }),
    signal,
  });
  if (!response.ok) throw await failure(response);
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new RequestFailed(500, chunk.error.message);
    const choice = chunk.choices[0];
    onChunk({
      text: choice?.delta?.content ?? "",
      tokens: chunk.usage?.completion_tokens ?? null,
      finish: choice?.finish_reason ?? null,
    });
  }
  throw new RequestFailed(0, "The connection closed before the answer was complete.");
}

async function reach(url, options) {
  try {
    return await fetch(url, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new RequestFailed(0, "The server cannot be reached. Is it still running?");
  }
}

async function failure(response) {
  let message = `The server answered with status ${response.status}.`;
  try {
    message = (await response.json()).error.message;
  } catch { /* not one of ours: the status has to do */ }
  const retryAfter = Number.parseInt(response.headers.get("Retry-After") ?? "", 10);
  return new RequestFailed(response.status, message, Number.isNaN(retryAfter) ? null : retryAfter);
}

async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      buffer += value;
      let end;
      while ((end = buffer.indexOf("\n\n")) >= 0) {
        const event = buffer.slice(0, end);
        buffer = buffer.slice(end + 2);
        if (event.startsWith("data:")) yield event.slice(5).trimStart();
      }
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new RequestFailed(0, "The connection was lost in the middle of the answer.");
  } finally {
    reader.releaseLock();
  }
}
