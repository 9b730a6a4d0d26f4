"use strict";
// A form with options of Web Authentication sends what a passkey answered. Without a browser that knows
// passkeys it stays hidden.
for (const form of document.querySelectorAll("form[data-options]")) {
  const known = window.PublicKeyCredential;
  if (!known || !known.parseRequestOptionsFromJSON || !known.prototype.toJSON) continue;
  const ask = form.dataset.ceremony === "registration"
    ? (options) => navigator.credentials.create({ publicKey: known.parseCreationOptionsFromJSON(options) })
    : (options) => navigator.credentials.get({ publicKey: known.parseRequestOptionsFromJSON(options) });
  form.hidden = false;
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const status = form.querySelector("[role=status]");
    status.textContent = "";
    try {
      const credential = await ask(JSON.parse(form.dataset.options));
      form.elements.credential.value = JSON.stringify(credential.toJSON());
      form.submit();
    } catch {
      status.textContent = "No passkey was used. You can try again.";
    }
  });
}
