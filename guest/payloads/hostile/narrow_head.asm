; Stores one byte to the head, and nothing to the buffer. Over exits the width is wrong; over polling the byte is wrong.
%include "driver.inc"
    begin
    mov byte [rdi + 0x10], 1
    finish
