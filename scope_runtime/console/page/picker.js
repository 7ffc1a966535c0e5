// Features to steer by, out of the packs in the policies' directory.

import { useState } from "preact/hooks";

import { Button, Empty, ErrorBox, html, number, useData } from "./ui.js";

export function Picker({ chosen, add }) {
  const [search, setSearch] = useState("");
  const { data, error } = useData("/-/features", { query: { search } });
  const found = data?.features || [];
  return html`<div class="picker">
    <label for="find-feature">Find a feature</label>
    <input id="find-feature" type="search" value=${search} placeholder="a word of its label, or its number" autocomplete="off" spellcheck="false"
      onInput=${(event) => setSearch(event.target.value)} />
    <${ErrorBox} error=${error} />
    <p class="hint" role="status">${data && (data.n_found > found.length
      ? `${number(data.n_found)} found; the first ${found.length} are listed.`
      : `${number(data.n_found)} found.`)}${data?.unusable.length ? ` Not usable: ${data.unusable.map((one) => `${one.file} (${one.text})`).join(", ")}.` : ""}</p>
    ${data && !found.length && html`<${Empty} title="Nothing found">${search
      ? "No label, number or file has these words."
      : html`Put a feature pack beside the policies: <code>scope convert</code> makes one.`}<//>`}
    ${found.length > 0 && html`<ul class="found" tabindex="0" aria-label="Features">${found.map((one) => {
      const taken = chosen.includes(JSON.stringify(one.feature));
      const name = one.label || one.place;
      return html`<li key=${JSON.stringify(one.feature)}>
        <div><span>${name}</span> <span class="quiet">${[one.label && one.place, one.max != null && `max ${number(one.max)}`].filter(Boolean).join(", ")}</span></div>
        <${Button} kind="small" disabled=${taken} aria-label=${`Add ${name}`} onClick=${() => add(one)}>${taken ? "Added" : "Add"}<//>
      </li>`;
    })}</ul>`}
  </div>`;
}
