"use strict";
// A form with options of Web Authentication sends what a passkey answered. Without a browser that knows
// passkeys it stays hidden, and what says so stays shown.
const known = window.PublicKeyCredential;
if (known && known.parseRequestOptionsFromJSON && known.prototype.toJSON) {
  for (const form of document.querySelectorAll("form[data-options]")) prepare(form);
  for (const text of document.querySelectorAll("[data-without-passkeys]")) text.hidden = true;
}

function prepare(form) {
  const ask = form.dataset.ceremony === "registration"
    ? (options) => navigator.credentials.create({ publicKey: known.parseCreationOptionsFromJSON(options) })
    : (options) => navigator.credentials.get({ publicKey: known.parseRequestOptionsFromJSON(options) });
  const [button, status] = [form.querySelector("button"), form.querySelector("[role=status]")];
  form.hidden = false;
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    status.textContent = "";
    // One at a time: browsers end the first when a second begins.
    button.disabled = true;
    try {
      const credential = await ask(JSON.parse(form.dataset.options));
      form.elements.credential.value = JSON.stringify(credential.toJSON());
      form.submit();
    } catch (error) {
      status.textContent = error.name === "InvalidStateError"
        ? "This device has a passkey for you already."
        : "No passkey was used. You can try again.";
    } finally {
      button.disabled = false;
    }
  });
}
