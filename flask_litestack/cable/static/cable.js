// The browser's half of the cable, protocol version 1. No dependency, no build, no inline code.
//
//   <ol id="comments" data-cable="posts/7" data-cable-since="{{ since }}"> ... </ol>
//   <span hidden><b data-cable-count="posts/7"></b> readers online</span>
//
// subscribes as long as the element is in the page. Each element gets the events cable:subscribed,
// cable:message, cable:render, cable:presence, cable:missed, cable:rejected and cable:error, with
// detail {channel, id, data, reason}; they bubble. What the server has rendered is put into the
// page unless the default of cable:render is prevented. From a script:
//
//   const subscription = cable.subscribe("posts/7", (data, id) => ..., {since, element});
//   subscription.send({typing: true});
//   subscription.unsubscribe();
"use strict";
(() => {
  if (window.cable) return; // loaded twice
  const { url = "/cable", silence = "75" } = document.currentScript?.dataset ?? {};
  const SILENCE = Number(silence) * 1000; // the server speaks more often than this
  const LONGEST_WAIT = 30000;
  const TRIES = 3; // failed websockets in a row before an event stream is tried
  const SIGNED_OUT = 4001;

  const channels = new Map(); // name -> {subscriptions, asked, active, presence}
  const unanswered = new Map(); // name -> requests to subscribe without an answer
  let connection = null;
  let isOpen = false;
  let everOpen = false;
  let failures = 0; // connections in a row on which nothing could be subscribed to
  let heardAt = 0;
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
      const subscriptions = new Set([subscription]);
      const fresh = { subscriptions, asked: null, active: false, presence: null };
      channels.set(name, fresh);
      ask(name, fresh);
      connect();
      return subscription;
    }
    const last = sinceOf(channel);
    channel.subscriptions.add(subscription);
    if (channel.active) {
      subscription.last ??= last;
      // It has missed what the others have: again from there. They ignore what they know.
      if (subscription.last < last) askAgain(name, channel);
    } // else when the answer comes
    if (channel.presence) subscription.emit("presence", channel.presence);
    return subscription;
  }

  function ask(name, channel) {
    channel.active = false;
    channel.asked = sinceOf(channel);
    request("subscribe", name, channel.asked);
  }

  function askAgain(name, channel) {
    request("unsubscribe", name);
    ask(name, channel);
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
      for (const [name, channel] of channels) ask(name, channel);
    };
    socket.onmessage = (event) => socket === connection && receive(event.data);
    socket.onclose = (event) => socket === connection && closed(event.code);
  }

  function connectEvents() {
    const target = new URL(url, location.href);
    for (const [name, channel] of channels) {
      channel.asked = sinceOf(channel);
      unanswered.set(name, 1);
      target.searchParams.append("channel", name);
      target.searchParams.append("since", channel.asked ?? "");
    }
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
    heard();
    document.dispatchEvent(new CustomEvent("cable:open"));
  }

  function closed(code) {
    const wasOpen = isOpen;
    forget();
    if (wasOpen) document.dispatchEvent(new CustomEvent("cable:close", { detail: { code } }));
    // At random, so that a restarted server does not get everybody at once. Who was signed out
    // gives the browser time to learn that it has another cookie.
    const soonest = code === SIGNED_OUT ? 3000 : 0;
    const wait = soonest + Math.random() * Math.min(LONGEST_WAIT, 1000 * 2 ** failures);
    failures += 1;
    retryTimer = setTimeout(connect, wait);
  }

  function disconnect() {
    const old = connection;
    forget();
    old?.close();
  }

  function forget() {
    connection = null;
    isOpen = false;
    clearTimeout(silenceTimer);
    clearTimeout(retryTimer);
    unanswered.clear();
    for (const channel of channels.values()) channel.active = false;
  }

  function reconnect() {
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
    if (type === "subscribe") unanswered.set(channel, (unanswered.get(channel) ?? 0) + 1);
    connection.send(JSON.stringify(since === null ? { type, channel } : { type, channel, since }));
  }

  function heard() {
    heardAt = Date.now();
    clearTimeout(silenceTimer);
    silenceTimer = setTimeout(() => {
      disconnect();
      connect();
    }, SILENCE);
  }

  // The timers of a page that nobody looks at are late.
  function isSilent() {
    return !isOpen || Date.now() - heardAt > SILENCE;
  }

  // -- messages -----------------------------------------------------------------------------

  function receive(text) {
    heard();
    const message = JSON.parse(text);
    if (message.type === "position") {
      for (const channel of channels.values()) if (channel.active) advance(channel, message.id);
      return;
    }
    const name = message.channel;
    if (message.type === "subscribed" || message.type === "rejected") {
      const rest = (unanswered.get(name) ?? 1) - 1;
      if (rest) unanswered.set(name, rest);
      else unanswered.delete(name);
    }
    // What comes before the last answer is of a subscription that we have given up.
    if (unanswered.has(name)) return;
    const channel = channels.get(name);
    if (channel) handlers[message.type]?.(channel, message);
  }

  function advance(channel, id) {
    for (const subscription of channel.subscriptions) {
      if (subscription.last === null || subscription.last < id) subscription.last = id;
    }
  }

  const handlers = {
    subscribed(channel, message) {
      failures = 0;
      channel.active = true;
      for (const subscription of channel.subscriptions) subscription.last ??= message.id;
      const since = sinceOf(channel);
      if (since < message.id && (channel.asked === null || since < channel.asked)) {
        askAgain(message.channel, channel); // for one that came while we waited for the answer
        return;
      }
      emitAll(channel, message);
    },
    message(channel, message) {
      for (const subscription of unknowing(channel, message.id)) {
        subscription.handler?.(message.data, message.id);
        subscription.emit("message", message);
      }
    },
    render(channel, message) {
      let rendered = false;
      for (const subscription of unknowing(channel, message.id)) {
        if (!subscription.emit("render", message) || rendered) continue;
        rendered = true; // once, however many elements are subscribed
        render(message.data);
      }
    },
    presence(channel, message) {
      channel.presence = message;
      for (const subscription of channel.subscriptions) subscription.emit("presence", message);
      showCounts(message.channel, message.data.count);
    },
    missed(channel, message) {
      for (const subscription of unknowing(channel, message.id)) {
        if (subscription.emit("missed", message)) refresh(subscription.element);
      }
    },
    rejected: (channel, message) => emitAll(channel, message),
    error: (channel, message) => emitAll(channel, message),
  };

  function emitAll(channel, message) {
    for (const subscription of channel.subscriptions) subscription.emit(message.type, message);
  }

  // The subscriptions that do not know a message yet; now they do.
  function unknowing(channel, id) {
    const found = [...channel.subscriptions].filter((s) => s.last === null || s.last < id);
    for (const subscription of found) subscription.last = id;
    return found;
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
      document.dispatchEvent(new CustomEvent("cable:rendered", { detail: { target, added } }));
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

  const refreshing = new WeakSet();

  // Load the page once more and take the element from it, with the id to subscribe from. All who
  // were connected to a server that was away for long do so: not at once, and until it succeeds.
  async function refresh(element) {
    if (!element.id || refreshing.has(element)) return;
    refreshing.add(element);
    for (let wait = 2000; element.isConnected; wait = Math.min(LONGEST_WAIT, 2 * wait)) {
      await new Promise((resolve) => setTimeout(resolve, Math.random() * wait));
      const fresh = await load(element.id).catch(() => null);
      if (!fresh || !element.isConnected) continue;
      element.replaceWith(fresh);
      window.htmx?.process(fresh);
    }
  }

  async function load(id) {
    const response = await fetch(location.href, { headers: { Accept: "text/html" } });
    if (!response.ok) return null;
    const page = new DOMParser().parseFromString(await response.text(), "text/html");
    const found = page.getElementById(id);
    return found && document.importNode(found, true);
  }

  function showCounts(name, count) {
    for (const element of document.querySelectorAll("[data-cable-count]")) {
      if (element.dataset.cableCount !== name || element.textContent === `${count}`) continue;
      element.textContent = count;
      const hidden = element.closest("[hidden]");
      if (hidden) hidden.hidden = false;
    }
  }

  const inPage = new Map(); // element -> subscription

  function look() {
    for (const [element, subscription] of inPage) {
      if (element.isConnected && element.dataset.cable === subscription.channel) continue;
      inPage.delete(element);
      subscription.unsubscribe();
    }
    for (const element of document.querySelectorAll("[data-cable]")) {
      if (inPage.has(element)) continue;
      const since = element.dataset.cableSince ?? null;
      inPage.set(element, subscribe(element.dataset.cable, null, { since, element }));
    }
    for (const [name, { presence }] of channels) if (presence) showCounts(name, presence.data.count);
  }

  function start() {
    look();
    new MutationObserver(look).observe(document.documentElement, {
      childList: true,
      subtree: true,
      attributeFilter: ["data-cable"],
    });
  }

  window.cable = { subscribe };
  window.addEventListener("online", reconnect);
  window.addEventListener("pageshow", (event) => event.persisted && reconnect());
  window.addEventListener("pagehide", disconnect); // so that the page may be cached
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden && isSilent()) reconnect();
  });
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
