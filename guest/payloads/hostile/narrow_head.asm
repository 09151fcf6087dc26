; Stores a byte to the head, and no byte to the buffer: by exits the width is wrong, by polling the byte.
%include "driver.inc"
    begin
    mov byte [rdi + 0x10], 1
    finish
