// The frame: who is asking, how it stands, and the tabs.

import { render } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";

import { get, key, whenKeyIsRefused } from "./api.js";
import { Badge, Button, ErrorBox, html, Loading, short, useAction, useData } from "./ui.js";
import { Activity } from "./tabs/activity.js";
import { Compare } from "./tabs/compare.js";
import { Policies } from "./tabs/policies.js";
import { Steer } from "./tabs/steer.js";

const TABS = [
  ["compare", "Compare", Compare],
  ["steer", "Steer", Steer],
  ["policies", "Policies", Policies],
  ["activity", "Activity", Activity],
];
const FIRST = "policies";
const STATUS_MS = 2000;

function SignIn({ refused, onKey }) {
  const [value, setValue] = useState("");
  const asking = useAction(async () => {
    key.set(value.trim());
    await get("/-/policies");
    onKey();
  });
  const submit = (event) => {
    event.preventDefault();
    asking.run();
  };
  return html`<main class="sign-in">
    <form class="card" onSubmit=${submit}>
      <${Mark} />
      <h1>Scope console</h1>
      <label for="key">Admin key</label>
      <input id="key" type="password" autocomplete="off" spellcheck="false" required autofocus
        value=${value} onInput=${(event) => setValue(event.target.value)} aria-describedby="key-help" />
      <p id="key-help" class="about">Kept in this browser tab until it is closed. Make one with <code>scope api-key NAME --admin</code>.</p>
      ${asking.error ? html`<${ErrorBox} error=${asking.error} />` : refused && html`<p class="error" role="alert">The key is not good any more.</p>`}
      <button class="button primary" type="submit" disabled=${asking.busy || !value.trim()}>Open the console</button>
    </form>
  </main>`;
}

function Mark() {
  return html`<svg class="mark" viewBox="0 0 32 32" aria-hidden="true">
    <rect width="32" height="32" rx="7" /><circle cx="16" cy="16" r="7.5" /><path d="M16 4.5v6M16 21.5v6M4.5 16h6M21.5 16h6" />
  </svg>`;
}

/** How it stands, in a few words. */
function standing(status) {
  if (status.off) return ["danger", "Switched off"];
  if (!status.policies.length && !status.success) return ["warning", "No policies"];
  if (!status.success) return ["warning", "Disk refused"];
  if (status.trouble) return ["warning", "Trouble"];
  return status.policies.length ? ["good", "Steering"] : ["", "No policies"];
}

function Standing({ status, error }) {
  if (error) return html`<${Badge} tone="danger">No connection<//>`;
  if (!status) return null;
  const [tone, said] = standing(status);
  return html`<span role="status"><${Badge} tone=${tone}><span class="dot" aria-hidden="true"></span>${said}<//></span>
    <span class="head-revision"><span class="quiet">revision</span> <code>${short(status.revision)}</code></span>`;
}

function useTab() {
  const read = () => {
    const name = location.hash.slice(1);
    return TABS.some(([each]) => each === name) ? name : FIRST;
  };
  const [tab, setTab] = useState(read);
  useEffect(() => {
    const change = () => setTab(read());
    addEventListener("hashchange", change);
    return () => removeEventListener("hashchange", change);
  }, []);
  const choose = (name) => {
    location.hash = name;
    setTab(name);
  };
  return [tab, choose];
}

/** Arrow keys move between tabs, as the pattern for tabs asks. */
function Tabs({ tab, choose }) {
  const list = useRef(null);
  const move = (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const names = TABS.map(([name]) => name);
    const at = [...list.current.children].indexOf(event.target);
    const to = step ? (at + step + names.length) % names.length : { Home: 0, End: names.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    choose(names[to]);
    list.current.children[to].focus();
  };
  return html`<div class="tabs" role="tablist" aria-label="Console" ref=${list} onKeyDown=${move}>
    ${TABS.map(([name, title]) => html`<button type="button" role="tab" id=${`tab-${name}`} aria-controls=${`panel-${name}`}
      aria-selected=${tab === name ? "true" : "false"} tabindex=${tab === name ? 0 : -1} onClick=${() => choose(name)}>${title}</button>`)}
  </div>`;
}

function useTheme() {
  const [theme, setTheme] = useState(() => localStorage.getItem("scope-theme") || "system");
  useEffect(() => {
    document.documentElement.dataset.theme = theme;
    localStorage.setItem("scope-theme", theme);
  }, [theme]);
  return [theme, setTheme];
}

function Console({ keyed, onLeave }) {
  const [tab, choose] = useTab();
  const [theme, setTheme] = useTheme();
  const { data: status, error, load } = useData("/-/policies", { every: STATUS_MS });
  return html`
    <a class="skip" href="#main" onClick=${(event) => { event.preventDefault(); document.getElementById("main").focus(); }}>Skip to content</a>
    <header class="top">
      <div class="top-row">
        <h1><${Mark} /> Scope</h1>
        <div class="standing"><${Standing} status=${status} error=${error} /></div>
        <div class="top-actions">
          <label class="theme"><span class="hidden">Colours</span>
            <select value=${theme} onChange=${(event) => setTheme(event.target.value)}>
              <option value="system">System</option><option value="light">Light</option><option value="dark">Dark</option>
            </select>
          </label>
          ${keyed && html`<${Button} kind="plain" onClick=${onLeave}>Forget key<//>`}
        </div>
      </div>
      <${Tabs} tab=${tab} choose=${choose} />
    </header>
    <main id="main" tabindex="-1">
      ${error && html`<${ErrorBox} error=${error} title="What is shown may be old" />`}
      ${TABS.map(([name, title, Tab]) => html`<div key=${name} role="tabpanel" id=${`panel-${name}`} aria-labelledby=${`tab-${name}`} hidden=${tab !== name}>
        ${tab === name || Tab.stays ? html`<${Tab} status=${status} reload=${load} shown=${tab === name} />` : null}
      </div>`)}
    </main>`;
}

function App() {
  const [state, setState] = useState("asking"); // asking, open, keyed, closed, refused
  const ask = async () => {
    try {
      await get("/-/policies");
      setState(key.get() ? "keyed" : "open");
    } catch (error) {
      if (error.status !== 401) setState(key.get() ? "keyed" : "closed");
    }
  };
  useEffect(() => {
    whenKeyIsRefused((had) => {
      key.forget();
      setState((before) => (had && before === "keyed" ? "refused" : "closed"));
    });
    ask();
  }, []);
  const leave = () => {
    key.forget();
    setState("closed");
  };
  if (state === "asking") return html`<${Loading} what="the console" />`;
  if (state === "closed" || state === "refused") {
    return html`<${SignIn} refused=${state === "refused"} onKey=${() => setState("keyed")} />`;
  }
  return html`<${Console} keyed=${state === "keyed"} onLeave=${leave} />`;
}

render(html`<${App} />`, document.getElementById("app"));
