// Draws up to 100,000 points, with WebGL or, without it, on a plain canvas.

const VERTEX = `#version 300 es
in vec2 place; in vec4 colour; uniform vec4 view; uniform float size; out vec4 tint;
void main() { gl_Position = vec4(place * view.xy + view.zw, 0.0, 1.0); gl_PointSize = size; tint = colour; }`;
const FRAGMENT = `#version 300 es
precision mediump float; in vec4 tint; out vec4 shown;
void main() { vec2 d = gl_PointCoord - 0.5; if (dot(d, d) > 0.25) discard; shown = tint; }`;

export class Points {
  /** @param {HTMLCanvasElement} canvas */
  constructor(canvas) {
    this.canvas = canvas;
    this.count = 0;
    this.gl = canvas.getContext("webgl2", { antialias: false, preserveDrawingBuffer: false });
    if (this.gl) this.#prepare();
    else this.flat = canvas.getContext("2d");
    canvas.dataset.drawnBy = this.gl ? "webgl" : "canvas";
  }

  #prepare() {
    const gl = this.gl;
    const program = gl.createProgram();
    for (const [kind, text] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, text);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    gl.useProgram(program);
    this.uniforms = { view: gl.getUniformLocation(program, "view"), size: gl.getUniformLocation(program, "size") };
    this.buffers = { order: gl.createBuffer() };
    for (const [name, width, kind] of [["place", 2, gl.FLOAT], ["colour", 4, gl.UNSIGNED_BYTE]]) {
      const buffer = gl.createBuffer();
      const at = gl.getAttribLocation(program, name);
      gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
      gl.enableVertexAttribArray(at);
      gl.vertexAttribPointer(at, width, kind, kind !== gl.FLOAT, 0, 0);
      this.buffers[name] = buffer;
    }
  }

  #fill(name, values) {
    if (!this.gl) return;
    this.gl.bindBuffer(this.gl.ARRAY_BUFFER, this.buffers[name]);
    this.gl.bufferData(this.gl.ARRAY_BUFFER, values, this.gl.STATIC_DRAW);
  }

  /** @param {Float32Array} places x and y of each, in -1 to 1 */
  setPlaces(places) {
    this.places = places;
    this.count = places.length / 2;
    this.#fill("place", places);
  }

  /**
   * @param {Uint8Array} colours red, green, blue and alpha of each
   * @param {boolean[]} below which of them lie below the others
   */
  setColours(colours, below = []) {
    this.colours = colours;
    this.#fill("colour", colours);
    // What has no label must not cover what has one: it is drawn first.
    const order = new Uint32Array(this.count);
    let at = 0;
    for (const first of [true, false]) for (let index = 0; index < this.count; index += 1) if (Boolean(below[index]) === first) order[at++] = index;
    this.order = order;
    if (!this.gl) return;
    this.gl.bindBuffer(this.gl.ELEMENT_ARRAY_BUFFER, this.buffers.order);
    this.gl.bufferData(this.gl.ELEMENT_ARRAY_BUFFER, order, this.gl.STATIC_DRAW);
  }

  /** Draw with x' = x * sx + tx and y' = y * sy + ty, in -1 to 1 of the canvas. */
  draw({ sx, sy, tx, ty }, size) {
    const { canvas, gl, flat } = this;
    if (!this.places || !this.colours) return;
    if (gl) {
      gl.viewport(0, 0, canvas.width, canvas.height);
      gl.clearColor(0, 0, 0, 0);
      gl.clear(gl.COLOR_BUFFER_BIT);
      gl.enable(gl.BLEND);
      // What the page lies under is multiplied by the alpha already: with it squared, pale points would be white on white.
      gl.blendFuncSeparate(gl.SRC_ALPHA, gl.ONE_MINUS_SRC_ALPHA, gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
      gl.uniform4f(this.uniforms.view, sx, sy, tx, ty);
      gl.uniform1f(this.uniforms.size, size);
      gl.drawElements(gl.POINTS, this.count, gl.UNSIGNED_INT, 0);
      return;
    }
    const { width, height } = canvas;
    const image = flat.createImageData(width, height);
    const pixels = new Uint32Array(image.data.buffer);
    const colours = new Uint32Array(this.colours.buffer);
    const reach = Math.max(0, Math.floor(size / 2));
    for (const index of this.order) {
      const x = Math.round(((this.places[2 * index] * sx + tx + 1) / 2) * width);
      const y = Math.round(((1 - (this.places[2 * index + 1] * sy + ty)) / 2) * height);
      if (x < reach || y < reach || x >= width - reach || y >= height - reach) continue;
      for (let down = -reach; down <= reach; down += 1) {
        const row = (y + down) * width + x;
        for (let right = -reach; right <= reach; right += 1) pixels[row + right] = colours[index];
      }
    }
    flat.putImageData(image, 0, 0);
  }
}

/** Return which points lie inside a polygon, both in -1 to 1 of the map. */
export function inside(places, polygon, most) {
  const found = [];
  for (let index = 0; index < places.length / 2 && found.length < most; index += 1) {
    const x = places[2 * index];
    const y = places[2 * index + 1];
    let odd = false;
    for (let one = 0, other = polygon.length - 1; one < polygon.length; other = one, one += 1) {
      const [ax, ay] = polygon[one];
      const [bx, by] = polygon[other];
      if (ay > y !== by > y && x < ((bx - ax) * (y - ay)) / (by - ay) + ax) odd = !odd;
    }
    if (odd) found.push(index);
  }
  return found;
}
