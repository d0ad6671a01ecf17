"use strict";
// One pair at a time: ask for it, show it as text, send what was judged, and go on only when the server says that it is on the disk.

const annotator = document.body.dataset.annotator;
const element = id => document.getElementById(id);
const SIDES = ["left", "right"];
const LETTERS = {h: ["domain", "helpfulness"], s: ["domain", "safety"], z: ["safety", "chosen_safe"], x: ["safety", "both_safe"],
  c: ["safety", "both_unsafe"], v: ["safety", ""]};
let pair = null;
let shownAt = 0;
let busy = false;

const say = text => { element("status").textContent = text; };
const wait = milliseconds => new Promise(done => setTimeout(done, milliseconds));
const radios = name => [...document.getElementsByName(name)];
const chosen = name => (radios(name).find(radio => radio.checked) || {value: ""}).value;

function choose(name, value) {
  for (const radio of radios(name)) radio.checked = radio.value === value;
  follow();
}

// The guideline of the domain, and whether the safety label may be left out.
function follow() {
  for (const radio of radios("domain")) element(`guideline-${radio.value}`).hidden = !radio.checked;
  element("safety-needed").textContent = chosen("domain") === "safety" ? "(needed here)" : "(if it matters)";
}

function showTurns(place, turns, withRoles) {
  place.replaceChildren();
  for (const turn of turns) {
    if (withRoles || turns.length > 1) {
      const role = document.createElement("p");
      role.className = "role";
      role.textContent = turn.role;
      place.append(role);
    }
    const text = document.createElement("p");
    text.className = `turn ${turn.role}`;
    text.dir = "auto";
    text.textContent = turn.content;
    place.append(text);
  }
}

const lastOf = side => pair[side][pair[side].length - 1].content;

function edit(side, open, text) {
  element(`${side}-area`).hidden = !open;
  element(`${side}-edit`).setAttribute("aria-expanded", String(open));
  element(`${side}-box`).value = open ? text : "";
}

function openEdit(side) {
  if (element(`${side}-area`).hidden) edit(side, true, lastOf(side));
  element(`${side}-box`).focus();
}

// A text that was opened and not changed is no edit; a text area turns other line ends into \n.
function edited(side) {
  if (element(`${side}-area`).hidden) return null;
  const text = element(`${side}-box`).value;
  return text === lastOf(side).replace(/\r\n?/g, "\n") ? null : text;
}

function show(found) {
  pair = found;
  const domain = chosen("domain") || "helpfulness";
  element("form").reset();
  showTurns(element("talk"), pair.prompt, true);
  for (const side of SIDES) {
    showTurns(element(`${side}-text`), pair[side], false);
    edit(side, false, "");
  }
  choose("domain", domain);  // people judge many by one guideline
  choose("safety", "");
  const before = pair.before;
  if (before) {
    choose("grade", `${before.side} ${before.grade}`);
    choose("domain", before.domain);
    choose("safety", before.safety || "");
    for (const box of document.getElementsByName("category")) box.checked = before.categories.includes(box.value);
    for (const side of SIDES) if (before[`edit_${side}`] !== null) edit(side, true, before[`edit_${side}`]);
  }
  element("judged").textContent = String(pair.judged);
  element("work").hidden = false;
  say(before ? "You have judged this pair before; saving it again corrects that." : "");
  window.scrollTo(0, 0);
  element("talk-title").focus({preventScroll: true});
  shownAt = performance.now();
}

async function ask(back) {
  const query = new URLSearchParams({annotator});
  if (back) query.set("back", "1");
  for (;;) {
    let answer;
    try {
      answer = await (await fetch(`/next?${query}`)).json();
    } catch {
      say("The server cannot be reached. What you saved is safe; this page goes on when the server is back.");
      await wait(2000);
      continue;
    }
    if (answer.state === "writing") {
      element("work").hidden = true;
      pair = null;
      say("The next answers are being written.");
      await wait(700);
      continue;
    }
    if (answer.state === "pair") return show(answer);
    if (back) return say(answer.reason);
    element("work").hidden = true;
    pair = null;
    return say(answer.state === "done" ? "All pairs are judged. Thank you."
      : answer.state === "failed" ? `No more answers are written: ${answer.reason}` : answer.reason);
  }
}

async function send(judgement) {
  const body = JSON.stringify({pair: pair.pair, annotator, revision: pair.revision, seconds: (performance.now() - shownAt) / 1000, ...judgement});
  for (;;) {  // the same judgement sent twice is kept once
    let reply;
    try {
      reply = await fetch("/judge", {method: "POST", headers: {"content-type": "application/json"}, body});
    } catch {
      say("Not saved yet: the server cannot be reached. It is sent again.");
      await wait(2000);
      continue;
    }
    if (reply.ok) return true;
    let reason = `${reply.status}`;
    try { reason = (await reply.json()).reason; } catch { /* no JSON: the number says it */ }
    say(`Not saved: ${reason}`);
    return false;
  }
}

async function alone(work) {
  if (busy) return;
  busy = true;
  document.body.setAttribute("aria-busy", "true");
  try { await work(); } finally { busy = false; document.body.removeAttribute("aria-busy"); }
}

function save() {
  if (!pair) return;
  const grade = chosen("grade");
  if (!grade) { say("Say which answer is better and by how much (1 to 8), or skip (k)."); radios("grade")[0].focus(); return; }
  const safety = chosen("safety") || null;
  if (chosen("domain") === "safety" && !safety) { say("In the domain safety, say which answers are safe (z, x, c)."); radios("safety")[0].focus(); return; }
  const [side, word] = grade.split(" ");
  const categories = [...document.getElementsByName("category")].filter(box => box.checked).map(box => box.value);
  const judgement = {side, grade: word, domain: chosen("domain"), safety, categories, edit_left: edited("left"), edit_right: edited("right")};
  alone(async () => { if (await send(judgement)) await ask(false); });
}

const skip = () => pair && alone(async () => { if (await send({skip: true})) await ask(false); });
const back = () => alone(() => ask(true));

function pressed(event) {
  const typing = event.target.matches("textarea, input[type=text]");
  if (event.key === "Escape" && typing) { event.target.blur(); element("talk-title").focus({preventScroll: true}); return; }
  if (event.key === "Enter" && event.ctrlKey && typing) { event.preventDefault(); save(); return; }
  if (typing || event.ctrlKey || event.altKey || event.metaKey || event.repeat) return;
  if (event.key === "Enter" && !event.target.matches("button, a, summary")) { event.preventDefault(); save(); return; }
  if (!element("keys").checked) return;
  const key = event.key.toLowerCase();
  if (key === "?") { element("help").open = !element("help").open; return; }
  if (key === "b") { event.preventDefault(); back(); return; }
  if (!pair) return;
  if (/^[1-8]$/.test(key)) radios("grade")[Number(key) - 1].click();
  else if (LETTERS[key]) choose(...LETTERS[key]);
  else if (key === "a") { const first = document.getElementsByName("category")[0]; if (first) first.focus(); }
  else if (key === "e") openEdit("left");
  else if (key === "r") openEdit("right");
  else if (key === "k") skip();
  else return;
  event.preventDefault();
}

element("form").addEventListener("submit", event => { event.preventDefault(); save(); });
element("form").addEventListener("change", follow);
element("skip").addEventListener("click", skip);
element("back").addEventListener("click", back);
for (const side of SIDES) {
  element(`${side}-edit`).addEventListener("click", () => {
    if (element(`${side}-area`).hidden) openEdit(side); else edit(side, false, "");
  });
}
document.addEventListener("keydown", pressed);
alone(() => ask(false));
