package peers;

/** What is on the screen: a second render of it within seconds is a refresh. */
record Ad(String viewer, String slot, String creative) {
    static Ad of(Render render) {
        return new Ad(render.viewer(), render.slot(), render.creative());
    }
}
