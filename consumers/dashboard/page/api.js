// The server: its stream, its answers, and the key that changes need. The key stays in this tab.

import { h } from "./dom.js";

const KEY = "tailrace-key";
const QUIET_MS = 5000;
const AGAIN_MS = 1000;

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

const headers = () => (key.get() ? { Authorization: `Bearer ${key.get()}` } : {});

export class ApiError extends Error {
  constructor(status, said) {
    super([said.where, said.what].filter(Boolean).join(": ") + (said.fix ? `. ${said.fix}` : ""));
    this.status = status;
  }
}

async function answer(response) {
  const text = await response.text();
  let value = null;
  try {
    value = JSON.parse(text);
  } catch {
    value = { error: { what: text || response.statusText } };
  }
  if (!response.ok && value?.error) throw new ApiError(response.status, value.error);
  return value;
}

export async function get(path) {
  return answer(await fetch(path, { headers: headers(), cache: "no-store" }));
}

export async function post(path, body = {}) {
  const sent = { ...headers(), "Content-Type": "application/json" };
  return answer(await fetch(path, { method: "POST", headers: sent, body: JSON.stringify(body) }));
}

// A snapshot each second, for ever. An EventSource could send no key.
export async function follow(onFrame, onLink) {
  for (;;) {
    const abort = new AbortController();
    let quiet = setTimeout(() => abort.abort(), QUIET_MS);
    try {
      const response = await fetch("/api/stream", { headers: headers(), signal: abort.signal, cache: "no-store" });
      if (!response.ok) await answer(response);
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) throw new Error("the server has stopped");
        clearTimeout(quiet);
        quiet = setTimeout(() => abort.abort(), QUIET_MS);
        const blocks = (rest + value).split("\n\n");
        rest = blocks.pop();
        const last = blocks.filter((block) => block.includes("data: ")).pop();
        if (last) onFrame(JSON.parse(last.slice(last.indexOf("data: ") + 6)));
      }
    } catch (error) {
      clearTimeout(quiet);
      abort.abort();
      if (error instanceof ApiError && error.status === 401) {
        onLink("a key is needed to read");
        await askKey("This server shows its state to those who have a key.");
        continue;
      }
      onLink(error instanceof ApiError ? error.message : "no connection to tailrace serve");
    }
    await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
  }
}

// A header holds no other characters: a request with one is never sent.
const UNSENT = /[^\x20-\x7e\xa0-\xff]/u;
document.getElementById("ask-input").addEventListener("input", ({ target }) => {
  const bad = target.value.trim().match(UNSENT)?.[0];
  target.setCustomValidity(bad ? `No key has the character ${JSON.stringify(bad)}: look whether it was pasted whole.` : "");
});

// Whether a person says yes; with `wantsKey` the key is taken from them.
export function ask(title, text, { yes = "OK", wantsKey = false } = {}) {
  const dialog = document.getElementById("ask");
  if (dialog.open) return Promise.resolve(false);
  document.getElementById("ask-title").textContent = title;
  document.getElementById("ask-text").replaceChildren(...[].concat(text));
  document.getElementById("ask-yes").textContent = yes;
  document.getElementById("ask-label").hidden = !wantsKey;
  const input = document.getElementById("ask-input");
  input.value = "";
  input.setCustomValidity("");
  dialog.returnValue = "no";
  dialog.showModal();
  if (wantsKey) input.focus();
  return new Promise((resolve) => {
    dialog.addEventListener(
      "close",
      () => {
        const agreed = dialog.returnValue === "yes";
        if (agreed && wantsKey) key.set(input.value.trim());
        input.value = "";
        input.setCustomValidity("");
        resolve(agreed);
      },
      { once: true },
    );
  });
}

export async function askKey(why) {
  const agreed = await ask("Key", [why, " It is kept in this tab alone."], { yes: "Use it", wantsKey: true });
  if (!agreed) await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
  return agreed;
}

// A change. Without a key, or with a wrong one, the person is asked for it once.
export async function change(path, body = {}) {
  if (!key.get() && !(await askKey("To change something, the admin key is needed."))) return null;
  try {
    return await post(path, body);
  } catch (error) {
    if (!(error instanceof ApiError) || error.status !== 401) throw error;
    key.set("");
    if (!(await askKey("That key is not right."))) return null;
    return post(path, body);
  }
}

export const NO_KEY = "Nothing can be changed here: the server has no control.keys.admin.";

export function button(text, act, { admin, primary = false, label = null } = {}) {
  const made = h("button", {
    type: "button",
    class: primary ? "primary" : null,
    disabled: admin === false,
    title: admin === false ? NO_KEY : null,
    "aria-label": label,
  }, text);
  made.addEventListener("click", async () => {
    if (made.ariaDisabled === "true") return;
    made.ariaDisabled = "true"; // what is `disabled` loses the focus, and a dialog could not give it back
    try {
      await act();
    } catch (error) {
      await ask("It was not done", error.message, { yes: "OK" });
    } finally {
      made.ariaDisabled = null;
    }
  });
  return made;
}
