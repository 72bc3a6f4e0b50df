let seen = new Date;
(async function load() {
  await new Promise(done => setTimeout(done, 2000));
  if (!document.hidden) try {
    const answer = await fetch(location.href, {signal: AbortSignal.timeout(5000)});
    if (!answer.ok) throw answer.status;
    // Without its style: a parsed page is held to this page's policy, which has another nonce.
    const text = (await answer.text()).replace(/<style[^]*?<\/style>/, "");
    const page = new DOMParser().parseFromString(text, "text/html");
    for (const part of ["title", "link", "h1", "main"])
      document.querySelector(part).replaceWith(page.querySelector(part));
    const phase = document.querySelector(".phase strong").textContent;
    if (said.textContent != phase) said.textContent = phase;
    seen = new Date;
    lost.hidden = true;
  } catch {
    lost.textContent = "No answer since " + seen.toLocaleTimeString() + ". This is the last state that was seen.";
    lost.hidden = false;
  }
  load();
})();
