// What the tabs are made of.

import { h } from "preact";
import { useCallback, useEffect, useRef, useState } from "preact/hooks";
import htm from "htm";

import { get } from "./api.js";

export const html = htm.bind(h);

/** Asks for a path: again when `on` is another, and every so often while the page is looked at. */
export function useData(path, { query = {}, every = 0, on = null } = {}) {
  const [state, setState] = useState({ data: null, error: null });
  const asked = JSON.stringify(query);
  const load = useCallback(async () => {
    try {
      const data = await get(path, JSON.parse(asked));
      setState({ data, error: null });
    } catch (error) {
      setState((before) => ({ data: before.data, error }));
    }
  }, [path, asked]);
  useEffect(() => {
    load();
    if (!every) return undefined;
    const timer = setInterval(() => document.hidden || load(), every);
    return () => clearInterval(timer);
  }, [load, every, on]);
  return { ...state, load };
}

/** An action with what came of it: busy while it runs, and the error that it ended with. */
export function useAction(action) {
  const [state, setState] = useState({ busy: false, error: null });
  const run = async (...given) => {
    setState({ busy: true, error: null });
    try {
      const done = await action(...given);
      setState({ busy: false, error: null });
      return done;
    } catch (error) {
      setState({ busy: false, error });
      return undefined;
    }
  };
  return { ...state, run, forget: () => setState({ busy: false, error: null }) };
}

export function Card({ title, level = 2, about, actions, children, tone = "" }) {
  const head = title || actions;
  return html`<section class=${`card ${tone}`}>
    ${head && html`<header class="card-head">
      <div>${title && h(`h${level}`, {}, title)}${about && html`<p class="about">${about}</p>`}</div>
      ${actions && html`<div class="actions">${actions}</div>`}
    </header>`}
    ${children}
  </section>`;
}

export function Button({ kind = "", busy = false, children, ...rest }) {
  return html`<button type="button" class=${`button ${kind}`} aria-busy=${busy} ...${rest} disabled=${busy || rest.disabled}>
    ${children}
  </button>`;
}

export function Badge({ tone = "", children }) {
  return html`<span class=${`badge ${tone}`}>${children}</span>`;
}

export const MODE_TONES = { enforce: "accent", audit: "info", off: "" };

export function Empty({ title, children }) {
  return html`<div class="empty"><p class="empty-title">${title}</p>${children && html`<p>${children}</p>`}</div>`;
}

export function Loading({ what }) {
  return html`<p class="loading" role="status">Loading ${what}…</p>`;
}

/** An error with its place and its way out; several errors are a list. */
export function ErrorBox({ error, title }) {
  if (!error) return null;
  const fields = error.fields || { message: error.message };
  const each = fields.errors || [fields];
  return html`<div class="error" role="alert">
    ${title && html`<p class="error-title">${title}</p>`}
    <ul>${each.map((one) => html`<li>
      ${one.file && html`<code>${[one.file.split("/").pop(), one.line, one.column].filter(Boolean).join(":")}</code> `}
      <span>${one.message}${one.key ? html` (at <code>${one.key}</code>)` : ""}</span>
      ${one.found != null && html`<span class="error-part">found <q>${one.found}</q></span>`}
      ${one.expected != null && html`<span class="error-part">expected <q>${one.expected}</q></span>`}
      ${one.hint && html`<span class="error-part">${one.hint}</span>`}
    </li>`)}</ul>
  </div>`;
}

export function short(revision) {
  return revision ? revision.replace(/^sha256:/, "").slice(0, 12) : "none";
}

/** A digest, short; a click copies the whole. */
export function Digest({ value, what = "revision" }) {
  const [copied, setCopied] = useState(false);
  if (!value || value === "none") return html`<code class="digest">none</code>`;
  const copy = async () => {
    await navigator.clipboard?.writeText(value);
    setCopied(true);
    setTimeout(() => setCopied(false), 1200);
  };
  return html`<button type="button" class="digest" title=${`${value}: copy`} aria-label=${`Copy ${what} ${short(value)}`} onClick=${copy}>
    ${copied ? "copied" : short(value)}
  </button>`;
}

export function when(seconds) {
  return new Date(seconds * 1000).toISOString().replace("T", " ").slice(0, 19);
}

/** How long ago; the time itself, in UTC as everywhere else, is its title. */
export function Time({ at }) {
  if (!at) return "never";
  const passed = Math.max(0, Date.now() / 1000 - at);
  const [size, unit] = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]].find(([each]) => passed >= each) || [1, "s"];
  const said = passed < 2 ? "just now" : `${Math.floor(passed / size)} ${unit} ago`;
  return html`<time datetime=${new Date(at * 1000).toISOString()} title=${`${when(at)} UTC`}>${said}</time>`;
}

/** A table that scrolls by itself, also by keyboard, where it is wider than the window. */
export function Table({ label, head, rows, numbers = [] }) {
  const kind = (i) => (numbers.includes(i) ? "number" : "");
  return html`<div class="scroll" tabindex="0" role="region" aria-label=${label}>
    <table>
      <thead><tr>${head.map((name, i) => html`<th scope="col" class=${kind(i)}>${name}</th>`)}</tr></thead>
      <tbody>${rows.map((row) => html`<tr key=${row.key} class=${row.tone || ""}>
        ${row.cells.map((cell, i) => html`<td class=${kind(i)}>${cell}</td>`)}
      </tr>`)}</tbody>
    </table>
  </div>`;
}

/** A modal question. Escape and the first button close it. */
export function Dialog({ title, onClose, children, wide = false }) {
  const ref = useRef(null);
  useEffect(() => {
    const before = document.activeElement;
    ref.current.showModal();
    return () => before?.focus?.();
  }, []);
  return html`<dialog ref=${ref} class=${wide ? "wide" : ""} aria-labelledby="dialog-title" onClose=${onClose}
      onCancel=${(event) => { event.preventDefault(); onClose(); }}>
    <h2 id="dialog-title">${title}</h2>
    ${children}
  </dialog>`;
}

export function number(value, digits = 3) {
  if (value == null) return "–";
  if (Number.isInteger(value)) return value.toLocaleString("en");
  return Number(value.toPrecision(digits)).toString();
}

export function place(layer) {
  return layer === -1 ? "embedding" : `layer ${layer}`;
}
