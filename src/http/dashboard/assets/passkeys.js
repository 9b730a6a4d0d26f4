"use strict";
// Forms with WebAuthn options submit the response of a passkey. In a browser without support for
// passkeys the form stays hidden, and a message stays visible.
const webauthn = window.PublicKeyCredential;
if (webauthn && webauthn.parseRequestOptionsFromJSON && webauthn.prototype.toJSON) {
  for (const form of document.querySelectorAll("form[data-options]")) prepare(form);
  for (const text of document.querySelectorAll("[data-without-passkeys]")) text.hidden = true;
}

function prepare(form) {
  const request = form.dataset.ceremony === "registration"
    ? (options) => navigator.credentials.create({ publicKey: webauthn.parseCreationOptionsFromJSON(options) })
    : (options) => navigator.credentials.get({ publicKey: webauthn.parseRequestOptionsFromJSON(options) });
  const [button, status] = [form.querySelector("button"), form.querySelector("[role=status]")];
  form.hidden = false;
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    status.textContent = "";
    // One at a time: a second request would abort the first.
    button.disabled = true;
    try {
      const credential = await request(JSON.parse(form.dataset.options));
      form.elements.credential.value = JSON.stringify(credential.toJSON());
      form.submit();
    } catch (error) {
      status.textContent = error.name === "InvalidStateError"
        ? "This device already has a passkey for your account."
        : "No passkey was used. Try again.";
    } finally {
      button.disabled = false;
    }
  });
}
