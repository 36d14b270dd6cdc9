// The browser's half of the cable, protocol version 1. No dependency, no build, no inline code.
//
//   <ol id="comments" data-cable="posts/7" data-cable-since="{{ since }}"> ... </ol>
//   <span hidden><b data-cable-count="posts/7"></b> readers online</span>
//
// subscribes as long as the element is in the page. Each element gets the events cable:subscribed,
// cable:message, cable:presence, cable:missed, cable:rejected and cable:error, with detail
// {channel, id, data, reason}; they bubble. A message {render: {html, target, swap}} is put into
// the page unless the event's default is prevented. From a script:
//
//   const subscription = cable.subscribe("posts/7", (data, id) => ..., {since, element});
//   subscription.send({typing: true});
//   subscription.unsubscribe();
"use strict";
(() => {
  const { url = "/cable", silence = "75" } = document.currentScript?.dataset ?? {};
  const SILENCE = Number(silence) * 1000; // the server speaks more often than this
  const LONGEST_WAIT = 30000;
  const TRIES = 3; // failed websockets in a row before an event stream is tried

  const channels = new Map(); // name -> {subscriptions, active, presence}
  let connection = null;
  let isOpen = false;
  let everOpen = false;
  let failures = 0;
  let retryTimer = 0;
  let silenceTimer = 0;

  // -- subscriptions ------------------------------------------------------------------------

  class Subscription {
    constructor(channel, handler, { since = null, element = document } = {}) {
      this.channel = channel;
      this.element = element;
      this.last = since === null || since === "" ? null : Number(since);
      this.handler = handler;
    }

    send(data) {
      if (!isOpen || !connection.send) throw new Error("the cable is not connected");
      connection.send(JSON.stringify({ type: "send", channel: this.channel, data }));
    }

    unsubscribe() {
      const channel = channels.get(this.channel);
      if (!channel?.subscriptions.delete(this)) return;
      if (channel.subscriptions.size) return;
      channels.delete(this.channel);
      request("unsubscribe", this.channel);
      if (!channels.size) disconnect();
    }

    emit(type, detail) {
      const options = { detail, bubbles: true, cancelable: true };
      return this.element.dispatchEvent(new CustomEvent(`cable:${type}`, options));
    }
  }

  function subscribe(name, handler = null, options = {}) {
    const subscription = new Subscription(name, handler, options);
    const channel = channels.get(name);
    if (!channel) {
      channels.set(name, { subscriptions: new Set([subscription]), active: false, presence: null });
      request("subscribe", name, subscription.last);
      connect();
      return subscription;
    }
    const last = sinceOf(channel);
    channel.subscriptions.add(subscription);
    if (subscription.last === null) {
      subscription.last = last;
    } else if (last !== null && subscription.last < last) {
      // It has missed what the others have: again from there. They ignore what they know.
      channel.active = false;
      request("unsubscribe", name);
      request("subscribe", name, subscription.last);
    }
    if (channel.presence) subscription.emit("presence", channel.presence);
    return subscription;
  }

  function sinceOf(channel) {
    const known = [...channel.subscriptions].map((s) => s.last).filter((last) => last !== null);
    return known.length ? Math.min(...known) : null;
  }

  // -- the connection -----------------------------------------------------------------------

  function connect() {
    if (connection || !channels.size) return;
    clearTimeout(retryTimer);
    if (!everOpen && failures >= TRIES && window.EventSource) {
      connectEvents();
    } else {
      connectSocket();
    }
  }

  function connectSocket() {
    const target = new URL(url, location.href);
    target.protocol = target.protocol.replace("http", "ws");
    const socket = new WebSocket(target);
    connection = socket;
    socket.onopen = () => {
      if (socket !== connection) return;
      everOpen = true;
      opened();
      for (const [name, channel] of channels) request("subscribe", name, sinceOf(channel));
    };
    socket.onmessage = (event) => socket === connection && receive(event.data);
    socket.onclose = (event) => socket === connection && closed(event.code);
  }

  function connectEvents() {
    const target = new URL(url, location.href);
    const sinces = [];
    for (const [name, channel] of channels) {
      target.searchParams.append("channel", name);
      sinces.push(sinceOf(channel));
    }
    // One id for all of them: what a channel knows already, it ignores.
    if (!sinces.includes(null)) target.searchParams.set("since", Math.min(...sinces));
    const source = new EventSource(target);
    connection = source;
    source.onopen = () => source === connection && opened();
    source.onmessage = (event) => source === connection && receive(event.data);
    source.onerror = () => {
      if (source !== connection) return;
      source.close();
      closed(0);
    };
  }

  function opened() {
    isOpen = true;
    failures = 0;
    heard();
    document.dispatchEvent(new CustomEvent("cable:open"));
  }

  function closed(code) {
    const wasOpen = isOpen;
    connection = null;
    isOpen = false;
    clearTimeout(silenceTimer);
    for (const channel of channels.values()) channel.active = false;
    if (wasOpen) document.dispatchEvent(new CustomEvent("cable:close", { detail: { code } }));
    // At random, so that a restarted server does not get everybody at once.
    const wait = Math.random() * Math.min(LONGEST_WAIT, 1000 * 2 ** failures);
    failures += 1;
    clearTimeout(retryTimer);
    retryTimer = setTimeout(connect, wait);
  }

  function disconnect() {
    const old = connection;
    connection = null;
    isOpen = false;
    clearTimeout(silenceTimer);
    clearTimeout(retryTimer);
    for (const channel of channels.values()) channel.active = false;
    old?.close();
  }

  function reconnect() {
    if (isOpen) return;
    disconnect();
    failures = 0;
    connect();
  }

  function request(type, channel, since = null) {
    if (!isOpen) return;
    if (!connection.send) {
      // An event stream is told its channels by its URL.
      disconnect();
      failures = TRIES;
      retryTimer = setTimeout(connect);
      return;
    }
    connection.send(JSON.stringify(since === null ? { type, channel } : { type, channel, since }));
  }

  function heard() {
    clearTimeout(silenceTimer);
    silenceTimer = setTimeout(() => {
      disconnect();
      connect();
    }, SILENCE);
  }

  // -- messages -----------------------------------------------------------------------------

  function receive(text) {
    heard();
    const message = JSON.parse(text);
    if (message.type === "position") {
      for (const channel of channels.values()) if (channel.active) advance(channel, message.id);
      return;
    }
    const channel = channels.get(message.channel);
    if (channel) handlers[message.type]?.(channel, message);
  }

  function advance(channel, id) {
    for (const subscription of channel.subscriptions) {
      if (subscription.last === null || subscription.last < id) subscription.last = id;
    }
  }

  const handlers = {
    subscribed(channel, message) {
      channel.active = true;
      for (const subscription of channel.subscriptions) {
        if (subscription.last === null) subscription.last = message.id;
        subscription.emit("subscribed", message);
      }
    },
    message(channel, message) {
      let rendered = false;
      for (const subscription of [...channel.subscriptions]) {
        if (subscription.last !== null && message.id <= subscription.last) continue;
        subscription.last = message.id;
        subscription.handler?.(message.data, message.id);
        const wanted = subscription.emit("message", message);
        if (wanted && !rendered && typeof message.data?.render?.html === "string") {
          rendered = true; // once, however many elements are subscribed
          render(message.data.render);
        }
      }
    },
    presence(channel, message) {
      channel.presence = message;
      for (const subscription of channel.subscriptions) subscription.emit("presence", message);
      showCounts(message.channel, message.data.count);
    },
    missed(channel, message) {
      for (const subscription of [...channel.subscriptions]) {
        subscription.last = message.id;
        if (subscription.emit("missed", message)) refresh(subscription.element);
      }
    },
    rejected: (channel, message) => emitAll(channel, message),
    error: (channel, message) => emitAll(channel, message),
  };

  function emitAll(channel, message) {
    for (const subscription of channel.subscriptions) subscription.emit(message.type, message);
  }

  // -- the page -----------------------------------------------------------------------------

  function render({ html, target, swap }) {
    for (const place of document.querySelectorAll(target)) {
      if (swap === "delete") {
        place.remove();
        continue;
      }
      const template = document.createElement("template");
      template.innerHTML = html;
      const fragment = document.importNode(template.content, true);
      const added = [...fragment.children];
      if (swap === "innerHTML") place.replaceChildren(fragment);
      else if (swap === "outerHTML") place.replaceWith(fragment);
      else insert(place, fragment, swap);
      for (const element of added) window.htmx?.process(element);
      document.dispatchEvent(new CustomEvent("cable:render", { detail: { target, added } }));
    }
  }

  function insert(place, fragment, swap) {
    // What the page shows already is replaced where it is, not shown twice.
    for (const element of [...fragment.children]) {
      const present = element.id && document.getElementById(element.id);
      if (present) present.replaceWith(element);
    }
    if (swap === "beforebegin") place.before(fragment);
    else if (swap === "afterbegin") place.prepend(fragment);
    else if (swap === "afterend") place.after(fragment);
    else place.append(fragment);
  }

  // Load the page once more and take the element from it, with the id to subscribe from.
  async function refresh(element) {
    if (!element.id) return;
    const response = await fetch(location.href, { headers: { Accept: "text/html" } });
    if (!response.ok) return;
    const page = new DOMParser().parseFromString(await response.text(), "text/html");
    const fresh = page.getElementById(element.id);
    if (fresh && element.isConnected) {
      element.replaceWith(document.importNode(fresh, true));
      window.htmx?.process(document.getElementById(element.id));
    }
  }

  function showCounts(name, count) {
    for (const element of document.querySelectorAll("[data-cable-count]")) {
      if (element.dataset.cableCount !== name) continue;
      element.textContent = count;
      const hidden = element.closest("[hidden]");
      if (hidden) hidden.hidden = false;
    }
  }

  const inPage = new Map(); // element -> subscription

  function look() {
    for (const [element, subscription] of inPage) {
      if (!element.isConnected) {
        inPage.delete(element);
        subscription.unsubscribe();
      }
    }
    for (const element of document.querySelectorAll("[data-cable]")) {
      if (inPage.has(element)) continue;
      const since = element.dataset.cableSince ?? null;
      inPage.set(element, subscribe(element.dataset.cable, null, { since, element }));
    }
  }

  function start() {
    look();
    new MutationObserver(look).observe(document.documentElement, { childList: true, subtree: true });
  }

  window.cable = { subscribe };
  window.addEventListener("online", reconnect);
  window.addEventListener("pageshow", (event) => event.persisted && reconnect());
  window.addEventListener("pagehide", disconnect); // so that the page may be cached
  document.addEventListener("visibilitychange", () => document.hidden || reconnect());
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
